"""How the page of a comparison looks: light, dark, on a phone, on paper."""

from meidbench.report.plots import GROUP_COLOURS

# Edges are darker (on black: lighter) than the fills: orange alone would not stand out 3:1 from white (WCAG 1.4.11).
LIGHT = {
    "bg": "#ffffff",
    "fg": "#1b1f24",
    "soft": "#545d68",
    "rule": "#d3d8de",
    "grid": "#e4e7eb",
    "warn": "#fff4d6",
    "shade": "#0003",
    "faint": ".6",
    "overall": "#7b8794",
    "overall-edge": "#59636e",
    "head": GROUP_COLOURS["head"],
    "head-edge": "#005a8e",
    "medium": GROUP_COLOURS["medium"],
    "medium-edge": "#946400",
    "tail": GROUP_COLOURS["tail"],
    "tail-edge": "#a34700",
}
DARK = {
    "bg": "#14171b",
    "fg": "#e8ebee",
    "soft": "#a7b0ba",
    "rule": "#3a424b",
    "grid": "#2a3037",
    "warn": "#3a3016",
    "shade": "#fff3",
    "faint": ".85",
    "overall": "#7b8794",
    "overall-edge": "#b3bcc6",
    "head": "#2b8fd0",
    "head-edge": "#6bbcf0",
    "medium": GROUP_COLOURS["medium"],
    "medium-edge": "#ffc95c",
    "tail": GROUP_COLOURS["tail"],
    "tail-edge": "#ff9a55",
}

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0 auto;padding:1.5rem .75rem 3rem;max-width:72rem;background:var(--bg);color:var(--fg);
 font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2;margin:0 0 .25rem;text-wrap:balance}
h2{font-size:1.2rem;line-height:1.3;margin:2.5rem 0 .25rem;padding-top:.6rem;border-top:2px solid var(--fg)}
h3{font-size:1rem;margin:1.5rem 0 0}
p{margin:.4rem 0;max-width:46rem}
.soft,caption,figcaption{color:var(--soft)}
.warnings{background:var(--warn);border-left:4px solid var(--medium-edge);padding:.6rem .9rem;margin:1rem 0}
.warnings ul{margin:.25rem 0;padding-left:1.2rem}
.key{white-space:nowrap;margin-right:1rem}
.key i{font-style:normal;color:var(--fill);-webkit-text-stroke:.6px var(--edge)}
.box{overflow-x:auto;margin:.75rem 0 0;
 background:linear-gradient(to left,var(--bg) 40%,transparent) right 0 top -1px/2.5rem calc(100% + 2px) no-repeat local,
 linear-gradient(to left,var(--shade),transparent) right/.9rem 100% no-repeat scroll}
.box:focus-visible,summary:focus-visible,button:focus-visible{outline:2px solid var(--head-edge);outline-offset:2px}
table{border-collapse:separate;border-spacing:0;font-variant-numeric:tabular-nums;overflow-wrap:normal}
caption{text-align:left;font-size:.9rem;line-height:1.4;padding:.2rem 0 .4rem;overflow-wrap:anywhere}
caption span{display:block;position:sticky;left:0;max-width:min(46rem,100vw - 1.5rem)}
th,td{padding:.4rem .7rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--rule);white-space:nowrap}
thead th{vertical-align:bottom;border-bottom:2px solid var(--fg);font-weight:600;line-height:1.25}
thead th small{font-weight:400}
th:first-child,td.word,th.word{text-align:left}
th:first-child{padding-left:0!important}
tbody th{font-weight:500;white-space:normal;overflow-wrap:anywhere;min-width:7rem;max-width:18rem;
 position:sticky;left:0;background:var(--bg)}
td small,th small{display:block;color:var(--soft);font-size:.8rem}
td b{font-weight:700}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));
 gap:1rem 1.75rem;margin:.75rem 0}
.charts.four{grid-template-columns:repeat(auto-fill,minmax(min(100%,15rem),1fr))}
figure{margin:0;min-width:0;max-width:30rem;break-inside:avoid}
figcaption{font-size:.9rem;line-height:1.3;margin-bottom:.3rem}
figcaption b{color:var(--fg)}
summary{cursor:pointer;font-weight:600;padding:.4rem 0}
.classes table{font-size:.85rem}
.classes th,.classes td{padding:.2rem .6rem}
.classes thead th{white-space:normal;overflow-wrap:anywhere;min-width:6.5rem}
button{all:unset;cursor:pointer}
th[aria-sort] button::after{content:" \\25BE"}
th[aria-sort=ascending] button::after{content:" \\25B4"}
svg{display:block;width:100%;height:auto;overflow:visible;font-family:inherit}
svg text{fill:var(--fg);stroke:var(--bg);stroke-width:3px;stroke-linejoin:round;paint-order:stroke;font-size:11px;
 font-variant-numeric:tabular-nums}
svg .tick{fill:var(--soft);font-size:10.5px}
svg .number{font-size:10.5px}
svg path,svg rect{vector-effect:non-scaling-stroke}
.grid{stroke:var(--grid);stroke-width:1}
.zero{stroke:var(--soft);stroke-width:1.2}
path.reference{fill:none;stroke:var(--fg);stroke-width:1.2;stroke-dasharray:3 2}
.bar,.area{fill:var(--fill);stroke:var(--edge);stroke-width:1}
.mark{fill:var(--fill);stroke:var(--edge);stroke-width:.8}
.spread{stroke:var(--edge);stroke-width:1;opacity:.55;fill:none}
.limits{stroke:var(--edge);stroke-width:1.6;fill:none}
.whisker{stroke:var(--fg);stroke-width:1.5;fill:none}
.halo{stroke:var(--bg);stroke-width:4;fill:none;opacity:.85}
.point .mark{fill-opacity:.45}
.points{fill:var(--fill);fill-opacity:var(--faint)}
.median{stroke:var(--fg);stroke-width:2;fill:none;stroke-linejoin:round}
path.median.reference{stroke:var(--soft);stroke-width:1.8;stroke-dasharray:4 3}
@media (max-width:32rem){
 body{padding-top:1rem}
 th,td{padding:.35rem .45rem}
 table{font-size:.9rem}
 tbody th{min-width:7rem;max-width:8rem}
}
@media print{
 html{font-size:9pt}
 body{max-width:none;padding:0}
 .box{overflow:visible;background:none}
 th,td{padding:.15rem .35rem}
 tbody th{position:static}
 h2,h3,.soft,figcaption{break-after:avoid}
 tr{break-inside:avoid}
 .charts{grid-template-columns:repeat(3,1fr)}
 .charts.four{grid-template-columns:repeat(4,1fr);gap:1rem}
}
"""


def _variables(palette: dict[str, str]) -> str:
    return ":root{" + ";".join(f"--{name}:{colour}" for name, colour in palette.items()) + "}"


def stylesheet() -> str:
    """Return the CSS of the page."""
    groups = "".join(
        f".{name}{{--fill:var(--{name});--edge:var(--{name}-edge)}}" for name in ("overall", *GROUP_COLOURS)
    )
    # On paper colours are those of a light screen.
    return (
        ":root{color-scheme:light dark}"
        f"{_variables(LIGHT)}@media screen and (prefers-color-scheme:dark){{{_variables(DARK)}}}{groups}{_RULES}"
    )
