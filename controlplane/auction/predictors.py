"""Predictors of what one more flow would meet on a server: the white paper's single weight, and a small network.

Single weight   adjustment = w · Σ features (white paper, "Neural Bid Predictor"); least squares, or a step at a time
Network         the completion time of a flow on each server, from what a balancer knows when it dispatches
Analytic        what both are measured against: (n + 1)/r(n + 1), and the same with a queue and the flow's own load

Features of the network and of the analytic predictions, FEATURES in the last axis, servers or samples before it:

    in_flight        flows in flight on the server, without the new one
    load_in_flight   the sum of their estimated loads; a mean flow is 1
    mu, k            fitted completion rate of one worker, 1/s, and worker count (controlplane/estimator.py)
    load             estimated load of the new flow (controlplane/auction/live_loads.py)
    fct_mean         mean FCT of the server's flows of late, seconds; 0: none seen

docs/auction.md, "Predictors", has the figures; numpy is all that this needs.
"""

from __future__ import annotations

import io
import itertools
import zipfile
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

FEATURES: Final = ("in_flight", "load_in_flight", "mu", "k", "load", "fct_mean")
FORMAT, VERSION = "vickrey completion predictor", 1

# Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1).
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
# No prediction is further than this factor from the analytic one, as a logarithm: the farm may be unlike any seen.
CORRECTION_MAX = 3.0
LEAST = 1e-9


class PredictorError(ValueError):
    """Features of a wrong shape, targets that cannot be, or a file that is no predictor; the text says which."""


class NeuralBidPredictor:
    """The single weight: prediction = w · Σ features, in the target's unit."""

    def __init__(self, weight: float = 0.0) -> None:
        self.weight = weight

    def predict(self, features: ArrayLike) -> Floats:
        """Return predictions, shape of features without its last axis."""
        total: Floats = np.asarray(features, dtype=np.float64).sum(axis=-1)
        return self.weight * total

    def step(self, features: ArrayLike, target: ArrayLike, learning_rate: float = 0.01) -> float:
        """Descend once along the gradient of the mean of ½(target - prediction)²; return that mean before the step.

        w ← w + rate · mean((target - w Σ) Σ)
        """
        total = np.asarray(features, dtype=np.float64).sum(axis=-1)
        error = np.asarray(target, dtype=np.float64) - self.weight * total
        self.weight += learning_rate * float(np.mean(error * total))
        return float(np.mean(0.5 * error**2))

    def fit(self, features: ArrayLike, target: ArrayLike) -> Self:
        """Take the weight that all those steps end at: w = Σ_j S_j y_j / Σ_j S_j², S the sums of the features."""
        total = np.asarray(features, dtype=np.float64).sum(axis=-1)
        power = float(np.sum(total**2))
        self.weight = float(np.sum(total * np.asarray(target, dtype=np.float64))) / power if power > 0 else 0.0
        return self


def _columns(features: ArrayLike) -> tuple[Floats, ...]:
    """Return the features one by one, bounded to what can be: counters of a damaged segment may say anything."""
    f = np.asarray(features, dtype=np.float64)
    if f.ndim == 0 or f.shape[-1] != len(FEATURES):
        raise PredictorError(f"expected features (…, {len(FEATURES)}): {', '.join(FEATURES)}; not of shape {f.shape}")
    f = np.clip(np.nan_to_num(f), 0.0, 1e12)
    n, held, mu, k, x, mean = (f[..., i] for i in range(len(FEATURES)))
    return n, held, np.maximum(mu, LEAST), np.maximum(k, 1.0), np.maximum(x, LEAST), mean


def analytic(features: ArrayLike) -> Floats:
    """Return (n + 1)/r(n + 1) with r(m) = μ min(m, k), seconds: the flow's time where all in flight share the rate."""
    n, _, mu, k, _, _ = _columns(features)
    return (n + 1.0) / (mu * np.minimum(n + 1.0, k))


def analytic_queue(features: ArrayLike) -> Floats:
    """Return x/μ + max(0, n + 1 - k)/(kμ), seconds: the flow's own time behind a queue of k exponential workers."""
    n, _, mu, k, x, _ = _columns(features)
    return x / mu + np.maximum(n + 1.0 - k, 0.0) / (k * mu)


def inputs(features: ArrayLike) -> Floats:
    """Return the network's inputs, (…, inputs), without units: a farm ten times as fast looks the same.

    Symmetric in nothing but the server itself: the same network serves every server, in any order and number.
    """
    n, held, mu, k, x, mean = _columns(features)
    queue = np.maximum(n + 1.0 - k, 0.0) / k
    backlog = np.maximum(held / k - held / np.maximum(n, 1.0), 0.0)
    lately = np.where(mean > 0, np.log(np.clip(mean * mu, 0.05, 500.0)), 0.0)
    rows: Floats = np.stack(
        (
            np.log1p(n), np.log1p(n / k), np.log1p(queue), np.log1p(held / k), np.log1p(backlog),
            np.log(k), np.log(x), x / (x + queue + backlog), lately,
        ),
        axis=-1,
    )  # fmt: skip
    return rows


class CompletionPredictor:
    """A multilayer perceptron that corrects `analytic_queue` by a factor: log time = log analytic + network(inputs).

    Untrained it is the analytic prediction. Target of the training is the logarithm of the time, squared error; predict
    returns the expected time, by Duan's smearing estimate (Journal of the American Statistical Association 78, 1983):
    exp(log time) · mean(exp(residual)) of the training.
    """

    def __init__(self, hidden: tuple[int, ...] = (32, 32), seed: int = 1) -> None:
        if not hidden or min(hidden) < 1:
            raise PredictorError(f"hidden: expected widths of at least 1, not {hidden}")
        rng = np.random.default_rng(seed)
        n_inputs = inputs(np.ones(len(FEATURES))).shape[-1]
        sizes = (n_inputs, *hidden, 1)
        self.weights: list[Floats] = []  # (in, out) each
        self.biases: list[Floats] = []  # (out,)
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            scale = 0.0 if i == len(hidden) else 1.0 / np.sqrt(fan_in)
            self.weights.append(rng.normal(0.0, 1.0, (fan_in, fan_out)) * scale)
            self.biases.append(np.zeros(fan_out))
        self.mean, self.scale = np.zeros(n_inputs), np.ones(n_inputs)  # of the inputs in the training
        self.smearing = 1.0
        self._rng = rng

    # --- prediction ---------------------------------------------------------------------------------------------------

    def predict(self, features: ArrayLike) -> Floats:
        """Return expected completion times in seconds, (servers,) for features (servers, FEATURES)."""
        return np.exp(self.log_time(features)) * self.smearing

    def log_time(self, features: ArrayLike) -> Floats:
        """Return the expected logarithm of the completion time in seconds."""
        base = np.log(analytic_queue(features))
        correction = self._forward(self._standard(features))[-1][..., 0]
        found: Floats = base + np.clip(correction, -CORRECTION_MAX, CORRECTION_MAX)
        return found

    def _standard(self, features: ArrayLike) -> Floats:
        # Beyond so many deviations little was seen, and tanh units would still extrapolate.
        return np.clip((inputs(features) - self.mean) / self.scale, -2.5, 2.5)

    def _forward(self, x: Floats) -> list[Floats]:
        """Return what each layer puts out, the input first; the last is (…, 1)."""
        outs = [x]
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            z = outs[-1] @ w + b
            outs.append(z if i == len(self.weights) - 1 else np.tanh(z))
        return outs

    # --- training -----------------------------------------------------------------------------------------------------

    def loss(self, x: Floats, y: Floats) -> tuple[float, list[Floats], list[Floats]]:
        """Return the mean of ½(network - y)² and its gradients by weights and biases; x (rows, inputs), y (rows,)."""
        outs = self._forward(x)
        error = outs[-1][:, 0] - y
        delta = (error / len(y))[:, None]
        by_weights: list[Floats] = []
        by_biases: list[Floats] = []
        for i in range(len(self.weights) - 1, -1, -1):
            by_weights.insert(0, outs[i].T @ delta)
            by_biases.insert(0, delta.sum(axis=0))
            if i:
                delta = (delta @ self.weights[i].T) * (1.0 - outs[i] ** 2)
        return float(0.5 * np.mean(error**2)), by_weights, by_biases

    def fit(
        self,
        features: ArrayLike,
        target: ArrayLike,
        *,
        epochs: int = 20,
        batch: int = 256,
        rate: float = 3e-3,
    ) -> Self:
        """Train on features (rows, FEATURES) and the seconds that those flows took, (rows,); the rate falls to zero.

        PredictorError: the rows differ in number, there are none, or a target is not a positive number.
        """
        f, seconds = np.asarray(features, dtype=np.float64), np.asarray(target, dtype=np.float64)
        if f.ndim != 2 or seconds.shape != f.shape[:1] or not len(f):
            raise PredictorError(f"expected features (rows, {len(FEATURES)}) and as many targets, at least one")
        if not (np.isfinite(seconds) & (seconds > 0)).all():
            raise PredictorError("expected targets of more than 0 seconds")
        raw = inputs(f)
        self.mean, self.scale = raw.mean(axis=0), np.maximum(raw.std(axis=0), 1e-3)
        x, y = self._standard(f), np.log(seconds) - np.log(analytic_queue(f))
        parameters = [*self.weights, *self.biases]
        first = [np.zeros_like(p) for p in parameters]
        second = [np.zeros_like(p) for p in parameters]
        steps, t = epochs * -(-len(x) // batch), 0
        for _ in range(epochs):
            order = self._rng.permutation(len(x))
            for start in range(0, len(x), batch):
                rows = order[start : start + batch]
                _, by_weights, by_biases = self.loss(x[rows], y[rows])
                t += 1
                now = rate * (1.0 - (t - 1) / steps)
                for p, g, m, v in zip(parameters, [*by_weights, *by_biases], first, second, strict=True):
                    m += (1.0 - BETA_1) * (g - m)
                    v += (1.0 - BETA_2) * (g**2 - v)
                    p -= now * (m / (1.0 - BETA_1**t)) / (np.sqrt(v / (1.0 - BETA_2**t)) + EPSILON)
        residual = np.log(seconds) - self.log_time(f)
        self.smearing = float(np.mean(np.exp(residual)))
        return self

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write it to an .npz file of plain arrays."""
        arrays = {f"weight_{i}": w for i, w in enumerate(self.weights)}
        arrays |= {f"bias_{i}": b for i, b in enumerate(self.biases)}
        with Path(path).open("wb") as file:  # savez would add a suffix to a name
            np.savez(
                file,
                format=np.array(FORMAT),
                version=np.array(VERSION),
                features=np.array(FEATURES),
                mean=self.mean,
                scale=self.scale,
                smearing=np.array(self.smearing),
                allow_pickle=False,
                **arrays,
            )

    @classmethod
    def load(cls, path: str | Path) -> CompletionPredictor:
        """Read one; PredictorError names the file and what is wrong with it."""
        try:
            # From memory: numpy leaves a damaged file open.
            with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        except OSError as error:
            raise PredictorError(f"{path}: {error.strerror or error}") from None
        except (ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, AttributeError, TypeError) as error:
            raise PredictorError(f"{path}: not an .npz file of arrays, or damaged ({error})") from None
        if str(found.get("format")) != FORMAT:
            raise PredictorError(f"{path}: not a {FORMAT}")
        if str(found.get("version")) != str(VERSION) or found.get("features", np.zeros(0)).tolist() != list(FEATURES):
            raise PredictorError(f"{path}: of another version, or for other features than {', '.join(FEATURES)}")
        layers = sum(name.startswith("weight_") for name in found)
        try:
            hidden = tuple(len(found[f"bias_{i}"]) for i in range(layers - 1))
            new = cls(hidden)
            for i in range(layers):
                new.weights[i] = _same(found[f"weight_{i}"], new.weights[i])
                new.biases[i] = _same(found[f"bias_{i}"], new.biases[i])
            new.mean, new.scale = _same(found["mean"], new.mean), _same(found["scale"], new.scale)
            new.smearing = float(_same(found["smearing"], np.array(1.0)))
        except (KeyError, TypeError, PredictorError) as error:
            raise PredictorError(f"{path}: damaged: {error}") from None
        if not (new.scale > 0).all() or not new.smearing > 0:
            raise PredictorError(f"{path}: damaged: scale and smearing are above 0")
        return new


def _same(found: NDArray[np.generic], like: Floats) -> Floats:
    if found.dtype != np.float64 or found.shape != like.shape or not np.isfinite(found).all():
        raise PredictorError(f"expected finite float64 of shape {like.shape}, not {found.dtype} of {found.shape}")
    return np.array(found, dtype=np.float64)
