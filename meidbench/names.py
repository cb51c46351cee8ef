"""Names that the command line and the core share, and the types of the two callbacks. Imports nothing of meidbench."""

from collections.abc import Callable
from contextlib import AbstractContextManager

DATASETS = ("videolt", "charadeslt", "charadesegolt", "animalkingdom")
# Built from official files of which not all are known by a digest; see splits/epic.py.
EPIC_DATASETS = ("epic100-verbs", "epic100-nouns", "epic100-all-nouns")
BENCHMARKS = (*DATASETS, *EPIC_DATASETS)
SUBSETS = ("train", "val", "test")
# Other names of subsets, in tables and in names of files.
SUBSET_NAMES = {name: name for name in SUBSETS} | {
    **{"training": "train", "validate": "val", "validation": "val", "valid": "val", "testing": "test"},
}
RELEASED = "released"
HELD_OUT = "heldout"  # begins the variant of a split whose val was taken out of train
OFFICIAL = "official"  # of EPIC_DATASETS, from the official files
SOURCE_DOMAIN = "source-domain"  # of EPIC_DATASETS, where the official training file is not there
DRAWN_VARIANTS = ("pareto", "grouped", "exact")
VARIANTS = (RELEASED, *DRAWN_VARIANTS)
GROUP_KEYS = ("pair", "subject")
SPLIT_FORMATS = ("parquet", "csv", "lst")
IMPORT_FORMATS = (
    *("table", "lists", "mmaction2", "slowfast", "something-something", "kinetics", "hacs", "activitynet"),
)
PLOT_FORMATS = (".png", ".svg", ".pdf")
PROTOCOLS = ("tie-aware", "apmeter", "charades")
BACKBONES = {"resnet101": 2048, "resnet50": 2048, "tsm-resnet50": 2048}  # with the numbers per row
# Prefixes of encoders' names, and the packages that make them; each prefix is also an extra and a module of encoders/.
ENCODER_LIBRARIES = {"timm": "timm", "hf": "transformers", "openclip": "open_clip"}
# Of encoders with one row per clip: clips per video, and the step between their frames, as VideoMAE is trained.
CLIPS, CLIP_STRIDE = 10, 4
EXTRACTED_DTYPES = ("float16", "float32")
STORED_DTYPES = (*EXTRACTED_DTYPES, "int8")
PRECISIONS = ("fp32", "bf16", "fp16")
VIDEO_SUFFIXES = (
    *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".gif", ".m2t", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov"),
    *(".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv"),
)
SAMPLINGS = ("uniform", "random")
ROW_CHECKS = ("auto", "full", "sample", "none")
SELECTION_SUBSETS = ("val", "test")
LAST_EPOCH = "last"  # no subset chooses: the weights of the last epoch are scored
SELECTIONS = (*SELECTION_SUBSETS, LAST_EPOCH)
RECORDED_SELECTIONS = (*SUBSETS, LAST_EPOCH)  # in prediction files, also of other programs
TUNED_GROUPS = ("overall", "tail")
RESIDENT = ("auto", "never", "always")
STATISTICS_TABLE = "table1"
TABLES = (
    *(STATISTICS_TABLE, "table2", "table3", "table4", "table5", "table6", "table7", "supp1", "supp2", "supp5"),
    "animalkingdom",
)

# Marks in every output of runs on features for which no video was seen, by the backbone in the recipe of the features.
WATERMARKS = {
    "simulation": "SIMULATED: numbers say nothing of real data",
    "words": "PROXY: word features, no vision; numbers say nothing of video recognition",
}

# What such features are, in messages.
WITHOUT_VIDEOS = {"simulation": "simulated", "words": "words"}

# Other names of the field, without case, hyphens, underscores and blanks, and the names that they may mean here.
# Messages suggest those that are known at the place: a command, a method, a component, the last part of a setting.
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    # commands
    **dict.fromkeys(("score", "test", "metrics"), ("evaluate",)),
    **dict.fromkeys(("infer", "inference", "apply"), ("predict",)),
    **dict.fromkeys(("fetch", "get"), ("download",)),
    **dict.fromkeys(("fit", "run"), ("train",)),
    **dict.fromkeys(("list", "benchmarks"), ("datasets",)),
    **dict.fromkeys(("recipes", "models", "baselines"), ("methods",)),
    # methods, losses and samplers
    **dict.fromkeys(("ce", "crossentropy", "binarycrossentropy", "baseline", "erm"), ("bce",)),
    **dict.fromkeys(("classbalanced", "cbloss", "effectivenumber"), ("cb", "cbs", "class_balanced")),
    **dict.fromkeys(("cb", "cbs", "classbalancedsampling", "balanced"), ("class_balanced",)),
    **dict.fromkeys(("squareroot", "sqrt", "squarerootsampling", "srs"), ("srs", "square_root")),
    **dict.fromkeys(("distributionbalanced", "dbloss", "db"), ("db", "distribution_balanced")),
    **dict.fromkeys(("equalization", "equalisation"), ("eql",)),
    **dict.fromkeys(("asymmetric", "asymmetricloss"), ("asl",)),
    **dict.fromkeys(("la", "logitadjustment"), ("logit_adjusted",)),
    **dict.fromkeys(("rfs", "oversampling"), ("repeat_factor",)),
    **dict.fromkeys(("random", "uniform", "shuffle"), ("instance",)),
    "meid": ("meid_two",),
    # aggregators
    **dict.fromkeys(("average", "avg", "avgpool", "averagepooling", "gap", "pooling"), ("mean", "early_mean")),
    **dict.fromkeys(("mlp", "linear"), ("nonlinear",)),
    **dict.fromkeys(("attn", "transformer"), ("attention",)),
    # settings
    **dict.fromkeys(("learningrate", "baselr"), ("lr",)),
    **dict.fromkeys(("bs", "batch"), ("batch_size",)),
    **dict.fromkeys(("numepochs", "nepochs", "maxepochs", "iterations"), ("epochs",)),
    **dict.fromkeys(("wd", "l2"), ("weight_decay",)),
    **dict.fromkeys(("steps", "lrsteps"), ("milestones",)),
    **dict.fromkeys(("gradclip", "clipgrad", "clipgradient", "clip"), ("clip_norm",)),
    **dict.fromkeys(("amp", "fp16", "bf16", "dtype"), ("precision",)),
    **dict.fromkeys(("numframes", "nframes", "framenum", "segments"), ("train", "test")),
    **dict.fromkeys(("gpu", "cuda"), ("device",)),
    **dict.fromkeys(("workers", "numworkers"), ("prefetch",)),
    **dict.fromkeys(("accumulation", "accumsteps", "gradaccumulation"), ("accumulate",)),
}

# Called with one line of text for the user.
Report = Callable[[str], None]
# Called with the number of steps that were just done.
Advance = Callable[[int], None]
# Opens a progress bar from a title and a total.
ProgressBar = Callable[[str, int], AbstractContextManager[Advance]]
# Called with a file's name, the bytes received so far and the bytes expected.
DownloadProgress = Callable[[str, int, int], None]
