"""A result of `dsmr bench --json` with every part, made up: what a report shows of it can be told apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsmr_export.runtime.bundle import Bundle


def full(bundle: Bundle) -> dict[str, Any]:
    """Of all graphs of a bundle; the default one takes 1.25 ms a step, each other one 0.5 ms more."""
    manifest = bundle.manifest
    default = manifest.default_graph
    names = [default, *(name for name in manifest.graphs if name != default)]
    graphs = {name: _graph(1.25 + 0.5 * place) for place, name in enumerate(names)}
    limits = {name: _limit(graphs[name]["step_ms"]["p50"]) for name in names}
    return {
        "bundle": {"name": manifest.name, "identity": bundle.identity},
        "architecture": {"parameters": 1234, "horizons": list(manifest.schedule.horizons)},
        "graphs": graphs,
        "ratios": {f"{name}_over_{default}": 1.4321 for name in names[1:]},
        "peers": {
            "pytorch_eager": {
                "what": "PyTorch eager, fp32",
                "equal": "same network; its forward alone, no sampling",
                "step_ms": {"p50": 9.876, "p90": 10.0, "p99": 11.0, "max": 12.0},
                "tokens_per_s": 101.3,
                "ratio": 7.9,
                "ratio_min": 6.71,
                "ratio_max": 8.02,
                "peak_mb": 400.0,
            },
            "openvino": {"absent": "openvino not installed: pip install 'dsmr-export[bench]'"},
        },
        "bandwidth": {**limits[default], "graphs": limits},
        "profile": {name: _profile(graphs[name]["step_ms"]["p50"]) for name in names},
        "reference": default,
        "default_graph": default,
        "steps": 1000,
        "rounds": 20,
        "threads": 1,
        "filled": 2022,
        "machine": {
            "processor": "Example CPU 9000",
            "cores": 2,
            "system": "Linux",
            "architecture": "x86_64",
            "load_average": 0.5,
        },
        "versions": {"python": "3.11.7", "onnxruntime": "1.31.1", "torch": None},
    }


def growth(graphs: list[str]) -> dict[str, list[dict[str, Any]]]:
    """As ``bench.growth`` measures it: every table has two rows a graph, the second one a tenth slower."""
    keys: dict[str, list[dict[str, Any]]] = {
        "horizon": [{"horizon": 256}, {"horizon": 16384}],
        "position": [
            {"position": 10_000, "walked": False, "control": False},
            {"position": 1_000_000, "walked": False, "control": False},
        ],
        "size": [{"parameters": 2_000_000}, {"parameters": 25_000_000}],
        "threads": [{"threads": 1}, {"threads": 2}],
        "schedules": [{"schedule": "two_scale:long=1664,short=128"}, {"schedule": "uniform"}],
    }
    return {
        name: [_grown(graph, place, found) for graph in graphs for place, found in enumerate(rows)]
        for name, rows in keys.items()
    }


def _grown(graph: str, place: int, found: dict[str, Any]) -> dict[str, Any]:
    p50 = 2.5 * (1 + 0.1 * place)
    return {
        "graph": graph,
        **found,
        "horizons": [256, 256],
        "step_ms": {"p50": p50, "p90": 1.2 * p50, "p99": 2 * p50, "max": 3 * p50},
        "tokens_per_s": 1000 / p50,
        "ratio": 1 + 0.1 * place,
        "ratio_min": 0.97 + 0.1 * place,
        "ratio_max": 1.04 + 0.1 * place,
        "ratio_95": [0.98 + 0.1 * place, 1.03 + 0.1 * place],
        "state_bytes": 1_000_000,
        "bytes_per_token": 2_000_000 + place,
        "multiply_adds": 3_000_000,
    }


def _graph(p50: float) -> dict[str, Any]:
    steps = {"p50": p50, "p90": 1.1 * p50, "p99": 1.3 * p50, "max": 9 * p50}
    rng = np.random.default_rng(0)
    edges = np.geomspace(0.9 * p50, 9 * p50, 41)
    counts, _ = np.histogram(p50 * np.exp(0.08 * rng.standard_exponential(1000)), edges)
    return {
        "step_ms": steps,
        "tokens_per_s": 1000 / p50,
        "music_s_per_s": 31.0,
        "python_share": 0.043,
        "histogram": {"edges_ms": edges.tolist(), "counts": counts.tolist()},
        "load_ms": 120.0,
        "load_warm_ms": 61.0,
        "first_ms": 7.7,
        "segment_tokens_per_s": {"16": 4000.0, "64": 9000.0, "256": 12345.0},
        "paced_cpu_share": 0.078,
        "peak_mb": 161.0,
        "threads": {
            "1": {"step_ms": steps, "tokens_per_s": 1000 / p50},
            "2": {"step_ms": {**steps, "p50": 0.7 * p50}, "tokens_per_s": 1400 / p50},
        },
    }


def _limit(p50: float) -> dict[str, float]:
    return {"gb_per_s": 11.5, "bytes_per_token": 4_330_000, "least_ms": 0.377, "fraction": 0.377 / p50}


def _profile(total: float) -> dict[str, Any]:
    return {
        "kinds": {
            "matmul": 0.5 * total,
            "attention": 0.2 * total,
            "norm": 0.08 * total,
            "activation": 0.05 * total,
            "other": 0.01 * total,
        },
        "between_nodes_ms": 0.1 * total,
        "host_ms": 0.02 * total,
        "sampling_ms": 0.04 * total,
        "outside_ms": 0.06 * total,
        "total_ms": total,
    }
