"""MEID in float64, one frame and one class at a time: the reference in the tests of its experts."""

import math

import numpy as np


def arrays(module):
    """The parameters and buffers of a module, by name."""
    return {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}


def part(state, prefix):
    return {name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")}


def sigmoid(value):
    return 1 / (1 + math.exp(-value)) if value > 0 else math.exp(value) / (1 + math.exp(value))


def layer(state, vector):
    """W x + b; without a bias W x."""
    bias = state.get("bias", np.zeros(len(state["weight"])))
    return np.array([sum(w * x for w, x in zip(row, vector, strict=True)) for row in state["weight"]]) + bias


def layer_norm(state, vector, epsilon):
    mean = sum(vector) / len(vector)
    variance = sum((value - mean) ** 2 for value in vector) / len(vector)
    return (vector - mean) / math.sqrt(variance + epsilon) * state["weight"] + state["bias"]


def batch_norm(state, vector):
    """Batch normalisation in evaluation mode."""
    mean, variance = state["running_mean"], state["running_var"]
    return (vector - mean) / np.sqrt(variance + 1e-5) * state["weight"] + state["bias"]


def norm(state, vector):
    inner = part(state, "norm")
    return batch_norm(inner, vector) if "running_mean" in inner else layer_norm(inner, vector, 1e-5)


def gelu(value):
    return value * (1 + math.erf(value / math.sqrt(2))) / 2


def simple_embedding(state, frames):
    """Equation 2."""
    return [np.maximum(layer(part(state, "linear"), norm(part(state, "norm"), frame)), 0) for frame in frames]


def release_embedding(state, frames):
    rows = []
    for frame in frames:
        if "project.weight" in state:
            first = layer_norm(part(state, "project_norm"), layer(part(state, "project"), frame), 1e-5)
            first = first + layer_norm(part(state, "inner_norm"), first, 1e-6)
            frame = layer_norm(part(state, "outer_norm"), first, 1e-6)
        wide = [gelu(value) for value in layer(part(state, "wide"), frame)]
        rows.append(frame + layer(part(state, "narrow"), wide))
    weight, bias = state["convolution.weight"], state["convolution.bias"]
    convolved = []
    for at, row in enumerate(rows):
        around = [rows[n] if 0 <= n < len(rows) else np.zeros_like(row) for n in (at - 1, at, at + 1)]
        convolved.append(row + bias + sum(weight[:, 0, tap] * near for tap, near in enumerate(around)))
    if "last_norm.weight" in state:
        return [layer_norm(part(state, "last_norm"), row, 1e-6) for row in convolved]
    return convolved


def embed(state, frames):
    return release_embedding(state, frames) if "wide.weight" in state else simple_embedding(state, frames)


def standardised(frame, epsilon=1e-5):
    middle = sum(frame) / len(frame)
    spread = sum((value - middle) ** 2 for value in frame) / len(frame)
    return (frame - middle) / math.sqrt(spread + epsilon)


def attention(state, frames, normal=True):
    """Equation 3, with a sigmoid: of each frame, brought to mean 0 and variance 1, or of the means of all."""
    first, second = part(state, "first"), part(state, "second")
    if "bias" in first:
        frames = [standardised(frame) for frame in frames] if normal else frames
        return [sigmoid(layer(second, np.maximum(layer(first, frame), 0))[0]) for frame in frames]
    means = np.array([sum(frame) / len(frame) for frame in frames])
    return [sigmoid(value) for value in layer(second, np.maximum(layer(first, means), 0))]


def mean(rows):
    return sum(rows) / len(rows)


def variance(values):
    middle = sum(values) / len(values)
    return sum((value - middle) ** 2 for value in values) / len(values)


def expert_one(state, frames):
    """A and Y of equations 2 to 4, in evaluation mode; X is normalised first if the state has that layer."""
    if "input_norm.norm.weight" in state:
        frames = [norm(part(state, "input_norm"), frame) for frame in frames]
    weights = attention(part(state, "attention"), frames)
    rows = [row * weight for row, weight in zip(embed(part(state, "embedding"), frames), weights, strict=True)]
    return frames, weights, layer(part(state, "aggregator.classifier"), mean(rows))


def fused(state, complementary, motion):
    """Equation 11, along the axis of the layer."""
    if state["weight"].shape[1] == 2 * len(complementary[0]) and state["weight"].shape[0] == len(complementary[0]):
        return [layer(state, np.concatenate(pair)) for pair in zip(complementary, motion, strict=True)]
    columns = [layer(state, column) for column in np.concatenate([complementary, motion]).T]
    return list(np.array(columns).T)


def expert_two(state, frames, motion, beta, on_input):
    """Y and Y_F of equations 8 to 12, in evaluation mode."""
    frames, weights, first = expert_one(part(state, "one"), frames)
    left = [1 / (weight + beta) for weight in weights]
    complement = part(state, "complement")
    if on_input:
        frames = [frame * weight for frame, weight in zip(frames, left, strict=True)]
    rows = embed(part(complement, "embed_frames"), frames)
    moved = embed(part(complement, "embed_motion"), motion)
    if "norm_frames.norm.weight" in complement:
        rows = [norm(part(complement, "norm_frames"), row) for row in rows]
        moved = [norm(part(complement, "norm_motion"), row) for row in moved]
    if not on_input:
        rows = [row * weight for row, weight in zip(rows, left, strict=True)]
    both = fused(part(complement, "fusion.linear"), rows, moved)
    return first, layer(part(state, "aggregators.0.classifier"), mean(both))


def neck(state, logits, classes, mask="input", activation="none", length="none"):
    """Equations 5 and 6 of one video: the masked logits are those of the group alone."""
    given = logits[classes] if mask == "input" else logits
    units = layer(part(state, "linear"), given)
    if activation == "lrelu":
        units = np.array([value if value > 0 else 0.2 * value for value in units])
    if length == "l2":
        units = units / math.sqrt(sum(value**2 for value in units))
    return units[classes] if mask == "output" else units


def distance(head, tail, over, kind):
    """Equation 7 from the units (B, d) of both necks."""
    spreads = []
    for units in (head, tail):
        if over == "all":
            spreads.append([variance([value for row in units for value in row])])
        else:
            spreads.append([variance(list(row)) for row in (units if over == "unit" else np.array(units).T)])
    apart = [one - other for one, other in zip(*spreads, strict=True)]
    squares = sum(value**2 for value in apart)
    return {
        "rms": math.sqrt(squares / len(apart)),
        "l2": math.sqrt(squares),
        "mse": squares / len(apart),
        "abs": sum(map(abs, apart)) / len(apart),
    }[kind]
