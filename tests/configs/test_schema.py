import json
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from pixelmill.configs.load import ConfigError, load_config
from pixelmill.configs.schema import (
    ComputeConfig,
    EvaluationConfig,
    KubernetesConfig,
    SemanticModel,
    SlurmConfig,
    TilingConfig,
)

JOBS: dict[str, Any] = {"maximum": 4, "memory": "32GB"}
PODS: dict[str, Any] = {"image": "registry/pixelmill:1", "maximum": 4, "memory": "4GB"}


@pytest.mark.parametrize("overlap", [0, 0.2, 0.9])
def test_tiles_may_overlap(overlap: float):
    assert TilingConfig(tile=(64, 64), overlap=overlap).overlap == overlap


@pytest.mark.parametrize("overlap", [-0.1, 0.91, 0.999, 1])
def test_tiles_that_would_be_countless_are_refused(overlap: float):
    with pytest.raises(ValidationError, match=r"overlap\n.*(or equal to 0.9|or equal to 0)"):
        TilingConfig(tile=(64, 64), overlap=overlap)


@pytest.mark.parametrize("name", ["instances", "semantic", "captions", "labels", "subset"])
def test_truth_is_not_looked_for_at_a_url(name):
    """It would be taken for a path that is not there, and nothing would be evaluated."""
    with pytest.raises(ValidationError, match="must be on a local disk, got a s3:// URL"):
        EvaluationConfig.model_validate({name: "s3://bucket/truth.json"})


def test_weights_are_not_looked_for_at_a_url():
    with pytest.raises(ValidationError, match="copy it here"):
        SemanticModel(name="s", weights="https://host/weights.safetensors")
    assert SemanticModel(name="s", weights="embedded:demo").weights == "embedded:demo"


@pytest.mark.parametrize(
    ("change", "num_workers"), [({}, 1), ({"cores": 8}, 8), ({"cores": 8, "gpus": 2}, 2)]
)
def test_a_job_has_a_worker_per_gpu_or_else_per_core(change: dict[str, int], num_workers: int):
    assert SlurmConfig.model_validate(JOBS | change).num_workers == num_workers


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (JOBS | {"gpus": 2, "processes": 4}, "each GPU gets one worker: leave out processes"),
        (JOBS | {"minimum": 5}, "minimum 5 is more than maximum 4"),
        (JOBS | {"walltime": "00:01:00"}, "greater than or equal to 5 minutes"),
        ({"maximum": 4}, "memory"),
    ],
)
def test_jobs_that_make_no_sense_are_refused(block: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        SlurmConfig.model_validate(block)


@pytest.mark.parametrize("walltime", ["12:00:00", 43_200])
def test_a_walltime_means_the_same_quoted_or_not(walltime: str | int):
    """YAML 1.1 reads 12:00:00 as a number of base 60."""
    assert SlurmConfig.model_validate(JOBS | {"walltime": walltime}).walltime == timedelta(hours=12)


def test_a_record_keeps_the_clusters():
    compute = ComputeConfig.model_validate({"slurm": JOBS, "kubernetes": PODS, "cluster": "slurm"})
    kept = json.loads(json.dumps(compute.model_dump(mode="json")))
    assert ComputeConfig.model_validate(kept) == compute


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "token", "DB_PASSWORD"])
def test_secrets_of_pods_do_not_get_into_records(name: str):
    with pytest.raises(ValidationError, match=f"{name} would be kept in every run's record"):
        KubernetesConfig.model_validate(PODS | {"env": {name: "x"}})
    KubernetesConfig.model_validate(PODS | {"env": {"TOKENIZERS_PARALLELISM": "false"}})


def test_what_we_make_of_a_pod_is_not_overwritten():
    KubernetesConfig.model_validate(PODS | {"pod": {"nodeSelector": {"zone": "a"}}})
    with pytest.raises(ValidationError, match="containers are made of image"):
        KubernetesConfig.model_validate(PODS | {"pod": {"containers": []}})


def test_a_cluster_without_its_block_and_a_misspelt_key_are_told_with_their_lines(tmp_path):
    path = tmp_path / "mine.yaml"
    head = "name: a\nmodels: [{name: b, task: detection, weights: 'embedded:b'}]\ncompute:\n"
    path.write_text(head + "  cluster: slurm\n")
    with pytest.raises(ConfigError, match=r":4: compute.cluster: cluster slurm .* compute.slurm"):
        load_config(path)
    path.write_text(head + "  cluster: slurm\n  slurm: {maximum: 2, memory: 8GB, wall_time: 1}\n")
    with pytest.raises(ConfigError, match=r":5: compute.slurm.wall_time: .* mean 'walltime'") as e:
        load_config(path)
    assert len(e.value.faults) == 1
