"""Search for the products of a network that INT8 can take: the cost of each, the largest set in a PESQ budget.

    found = search_int8(enhancer, read_batches(path), read_recordings(data), budget=0.02)
    found.plan, found.costs, found.steps

Every number comes from the graph itself: Q/DQ nodes around a product, streamed in ONNX Runtime over whole recordings
and compared with the float32 graph on the same recordings. Each tensor takes the range, of those that the calibrators
offer, that costs least noise. The set begins with all products; as long as it loses more than the budget, the product
that costs most noise for its share of the arithmetic goes back to what it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calib import CalibrationError
from calib.batches import Batches
from calib.ranges import METHODS, Range, find_ranges
from edgese.errors import ConfigError, VerificationError
from edgese.graphs.plan import Plan
from edgese.graphs.precision import Precision
from edgese.graphs.write import SCHEMES, graph_of, quantizable, quantize_graph, write_graph
from edgese.machine.processes import in_processes
from edgese.metrics.difference import snr_db
from edgese.metrics.pairs import Recording
from edgese.model.cost import product_macs
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.product import products
from edgese.quantize.scoring import Scored, ScoringTask, died, score_graph
from edgese.verify.limits import LIMITS
from export.staging import temporary_folder

BUDGET = 0.02  # of PESQ-WB; the limit is 0.05: other recordings lose other amounts
LIMIT = LIMITS[Precision.INT8].pesq_loss
BEST = "best"  # of all methods, for each tensor


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of INT8 in one product, or in a set of them."""

    products: tuple[str, ...]
    share: float  # of the multiply-accumulates of all that could be INT8
    snr_db: float  # of the float32 graph's output over the difference, all recordings together
    pesq_loss: float  # of PESQ-WB against the float32 graph, mean over the recordings
    worst_loss: float  # in one recording
    method: str = ""  # what chose the range of a single product

    def entry(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return dataclasses.asdict(self) | {"products": list(self.products)}


@dataclasses.dataclass(frozen=True)
class Quantization:
    """Result of a search: a plan inside the budget, the cost of each product, and the sets that were tried."""

    plan: Plan
    costs: tuple[Cost, ...]  # of each product alone, cheapest noise for its share first
    steps: tuple[Cost, ...]  # sets that were tried; the last is the plan's

    def __str__(self) -> str:
        chosen = self.steps[-1]
        left = [cost for cost in self.costs if cost.products[0] not in chosen.products]
        dear = ", ".join(f"{cost.products[0]} ({cost.pesq_loss:+.4f} alone, {cost.snr_db:.0f} dB)" for cost in left)
        return (
            f"{len(chosen.products)} of {len(self.costs)} products, {chosen.share:.0%} of their arithmetic: "
            f"{chosen.pesq_loss:+.4f} PESQ-WB lost (budget {self.plan.facts['budget']:g}), "
            f"{chosen.worst_loss:+.3f} in the worst of {len(self.plan.facts['recordings'])} recordings, "
            f"SNR {chosen.snr_db:.1f} dB; left out: {dear or 'none'}"
        )

    @classmethod
    def of(cls, plan: Plan) -> Quantization | None:
        """Search that a plan came from; None for a plan that came from none."""
        if "together" not in plan.facts:
            return None
        alone, together = (
            tuple(Cost(**{**entry, "products": tuple(entry["products"])}) for entry in plan.facts[name])
            for name in ("alone", "together")
        )
        return cls(plan, _chosen(alone, plan.facts["methods"]), together)


def search_int8(
    enhancer: WaveformEnhancer,
    calibration: Batches,
    recordings: Sequence[Recording],
    *,
    precision: Precision = Precision.INT8,
    budget: float = BUDGET,
    method: str = BEST,
    on_progress: Callable[[str], None] | None = None,
) -> Quantization:
    """Search for the largest set of products that INT8 takes within the budget.

    Args:
        calibration: inputs of this network's graphs, with the states of a streaming run (edgese.quantize.calibration).
        recordings: pairs to compute PESQ on; not those of the calibration.
        budget: PESQ-WB that may be lost in their mean.
        method: one of `calib.ranges.METHODS`, or "best": each tensor takes that which costs least noise.

    Raises:
        ConfigError: an unknown method, or a budget that is none.
        CalibrationError: the batches do not fit the network.
        VerificationError: the budget cannot be met; the message lists what costs most.
    """
    report = on_progress or (lambda step: None)
    if method not in (BEST, *METHODS):
        raise ConfigError(f"calibrator: found {method}, wanted one of {', '.join((BEST, *METHODS))}")
    if not 0 < budget <= LIMIT:
        raise ConfigError(f"PESQ budget: found {budget}, wanted more than 0 and at most {LIMIT}")
    with temporary_folder() as folder:
        methods = METHODS if method == BEST else (method,)
        search = _Search(folder, enhancer, calibration, recordings, precision, methods, report)
        alone = [cost for name in methods for cost in search.alone(name)]
        chosen = _least_noise(alone, search.tensors)
        ranges = {product: search.offered[name][product] for product, name in chosen.items()}
        costs = _chosen(alone, chosen)
        steps: list[Cost] = []
        for n_kept in range(len(costs), 0, -1):
            steps += search.costs([{cost.products[0]: ranges[cost.products[0]] for cost in costs[:n_kept]}])
            if steps[-1].pesq_loss <= budget:
                break
    if steps[-1].pesq_loss > budget:
        dear = ", ".join(f"{cost.products[0]} {cost.pesq_loss:+.3f} ({cost.snr_db:.0f} dB)" for cost in costs[::-1][:5])
        raise VerificationError(
            f"{precision.value}: not even the cheapest product is inside the PESQ budget of {budget:g}. "
            f"What each loses alone, the costliest first: {dear}"
        )
    kept = set(steps[-1].products)
    others = tuple(name for name in products(enhancer.network) if name not in kept)
    plan = Plan(
        half=others if precision == Precision.INT8 else (),
        ranges={product: found for product, found in ranges.items() if product in kept},
        calibration=calibration.digest,
        facts={
            "methods": chosen,
            "budget": budget,
            "recordings": [recording.name for recording in recordings],
            "alone": [cost.entry() for cost in alone],
            "together": [cost.entry() for cost in steps],
        },
    )
    return Quantization(plan, costs, tuple(steps))


def make_plans(
    enhancer: WaveformEnhancer,
    precisions: Sequence[Precision],
    *,
    calibration: Batches | None = None,
    recordings: Sequence[Recording] = (),
    budget: float = BUDGET,
    method: str = BEST,
    on_progress: Callable[[str], None] | None = None,
) -> dict[Precision, Plan]:
    """Plans of a network for these precisions; those in INT8 are searched for, which takes minutes.

    Raises:
        ConfigError: INT8 without a calibration or recordings, or for a network that is not causal.
        VerificationError, CalibrationError: as `search_int8`.
    """
    plans = {}
    for precision in dict.fromkeys(precisions):
        if precision.quantized:
            if not enhancer.network.causal:
                raise ConfigError(
                    f"{precision.value}: {enhancer.network.config.name} looks ahead: INT8 is calibrated on streams, "
                    "which it does not have: export it in fp32 or fp16"
                )
            if calibration is None or not recordings:
                raise ConfigError(
                    f"{precision.value}: needs a calibration and recordings to compute PESQ on: make one with "
                    "`edgese calibrate --data DIR`, give it with --calibration, and clean/ and noisy/ pairs with --data"
                )
            found = search_int8(
                *(enhancer, calibration, recordings),
                precision=precision,
                budget=budget,
                method=method,
                on_progress=on_progress,
            )
            plans[precision] = found.plan
        elif precision == Precision.FP16:
            plans[precision] = Plan(half=tuple(products(enhancer.network)))
    return plans


class _Search:
    """Maker and scorer of a network's graphs with sets of products in INT8, beside the float32 graph."""

    def __init__(
        self,
        folder: Path,
        enhancer: WaveformEnhancer,
        calibration: Batches,
        recordings: Sequence[Recording],
        precision: Precision,
        methods: Sequence[str],
        report: Callable[[str], None],
    ) -> None:
        self.folder, self.enhancer, self.precision = folder, enhancer, precision
        self.recordings, self.report = recordings, report
        self.graph = graph_of(enhancer, _block_of(calibration, enhancer))
        self.float32 = folder / self.graph.file
        report("ranges of activations")
        write_graph(enhancer, self.graph, self.float32, Plan())
        self.tensors = {product: found.activation for product, found in quantizable(self.float32, enhancer).items()}
        wanted = set(self.tensors.values())
        found = {
            method: find_ranges(
                self.float32, calibration.batches, wanted, method=method, symmetric=SCHEMES[precision].symmetric
            )
            for method in methods
        }
        self.offered = {
            method: {product: ranges[tensor] for product, tensor in self.tensors.items()}
            for method, ranges in found.items()
        }
        macs = product_macs(enhancer)
        self.macs = {product: macs[product] for product in self.tensors}
        report("float32, for comparison")
        (self.reference,) = self._scored([self.float32])

    def alone(self, method: str) -> list[Cost]:
        """Cost of each product alone in INT8, with the range that this method offers."""
        singles = [{product: found} for product, found in self.offered[method].items()]
        return [dataclasses.replace(cost, method=method) for cost in self.costs(singles)]

    def costs(self, sets: Sequence[Mapping[str, Range]]) -> list[Cost]:
        """Cost of each of these sets of products in INT8, with their ranges, all others in float32."""
        files = [self.folder / f"{number}.onnx" for number in range(len(sets))]
        for file, ranges in zip(files, sets, strict=True):
            quantize_graph(self.enhancer, self.float32, file, ranges, self.precision)
        scored = self._scored(files, [list(ranges) for ranges in sets])
        return [self._cost(list(ranges), waves) for ranges, waves in zip(sets, scored, strict=True)]

    def _scored(self, files: Sequence[Path], sets: Sequence[Sequence[str]] = ()) -> list[tuple[Scored, ...]]:
        """Outputs and scores of each graph on all recordings."""
        tasks = [ScoringTask(file, self.graph, self.enhancer.audio.overlap, tuple(self.recordings)) for file in files]
        found = []
        for scored in in_processes(score_graph, tasks, None, died):
            found.append(scored)
            if sets:
                self.report(f"INT8 in {_named(sets[len(found) - 1])} ({len(found)} of {len(sets)})")
        return found

    def _cost(self, chosen: Sequence[str], scored: Sequence[Scored]) -> Cost:
        lost = [before.pesq - after.pesq for before, after in zip(self.reference, scored, strict=True)]
        wanted, found = (np.concatenate([one.wave for one in all_of]) for all_of in (self.reference, scored))
        return Cost(
            products=tuple(chosen),
            share=sum(self.macs[product] for product in chosen) / sum(self.macs.values()),
            snr_db=snr_db(wanted, found),
            pesq_loss=float(np.mean(lost)),
            worst_loss=float(max(lost)),
        )


def _least_noise(alone: Sequence[Cost], tensors: Mapping[str, str]) -> dict[str, str]:
    """Method with the least noise for each product; products that read one tensor share its range, so the method."""
    noise: dict[str, dict[str, float]] = {}
    for cost in alone:
        by_method = noise.setdefault(tensors[cost.products[0]], {})
        by_method[cost.method] = by_method.get(cost.method, 0.0) + 10 ** (-cost.snr_db / 10)
    return {product: min(noise[tensor], key=noise[tensor].__getitem__) for product, tensor in tensors.items()}


def _chosen(alone: Sequence[Cost], methods: Mapping[str, str]) -> tuple[Cost, ...]:
    """Cost of each product with the method that was chosen for it, cheapest noise for its share first."""
    return tuple(sorted((one for one in alone if one.method == methods[one.products[0]]), key=_noise_per_share))


def _block_of(calibration: Batches, enhancer: WaveformEnhancer) -> int:
    """Hops of a batch; whatever else does not fit is found when the graph is fed."""
    wave = calibration.batches[0].get("wave")
    if wave is None or wave.ndim != 2 or wave.shape[1] % enhancer.audio.hop:
        found = "none" if wave is None else f"one of shape {wave.shape}"
        raise CalibrationError(f"calibration: found {found} for wave, wanted (streams, hops * {enhancer.audio.hop})")
    return int(wave.shape[1] // enhancer.audio.hop)


def _named(products: Sequence[str]) -> str:
    return products[0] if len(products) == 1 else f"{len(products)} products"


def _noise_per_share(cost: Cost) -> float:
    """Noise of a product in INT8 for its share of the arithmetic, dB; the lower, the cheaper."""
    return -cost.snr_db - 10 * math.log10(cost.share)
