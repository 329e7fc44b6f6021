"""Facts of a cluster that cannot be are refused."""

import pytest

from slurm.cluster import ClusterConfig, ContainerConfig


@pytest.mark.parametrize("facts", [{"kind": "pyxis"}, {"image": "/shared/tessera.sif"}])
def test_a_container_has_a_kind_and_an_image(facts):
    with pytest.raises(ValueError, match=r"cluster\.container: kind=.* with image=.*: give both, or none"):
        ContainerConfig(**facts)


@pytest.mark.parametrize(("name", "least"), [("gpus_per_node", 0), ("signal_s", 1), ("min_bandwidth_gb_s", 0)])
def test_a_number_that_is_too_small_is_named(name, least):
    with pytest.raises(ValueError, match=rf"cluster\.{name}={least - 1} must be at least {least}"):
        ClusterConfig(**{name: least - 1})


def test_only_its_own_kind_of_container_adds_words():
    none = ContainerConfig()
    assert (none.srun_options("/c"), none.wrapper("/c")) == ([], [])
    assert ContainerConfig(kind="pyxis", image="i").wrapper("/c") == []
    assert ContainerConfig(kind="apptainer", image="i").srun_options("/c") == []


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "hf_token", "DB_PASSWORD", "AWS_SECRET"])
def test_a_secret_is_refused_without_its_value(name):
    with pytest.raises(
        ValueError, match=rf"^cluster\.environment\.{name} looks like a secret.* export {name} in"
    ) as why:
        ClusterConfig(environment={"NCCL_DEBUG": "INFO", name: "hunter2"})
    assert "hunter2" not in str(why.value)
    assert ClusterConfig(environment={"TOKENIZERS_PARALLELISM": "false"}).environment
