"""Launch scripts: shellcheck finds nothing, dry runs print every command, the manifest has what its schema requires."""

import shutil
import subprocess

import pytest
import yaml


@pytest.fixture
def launch(pytestconfig):
    return pytestconfig.rootpath / "experiments" / "launch"


def run(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, command)], capture_output=True, text=True)


@pytest.mark.parametrize("name", ["tpu_vm.sh", "slurm.sh", "gke.sh"])
def test_shellcheck_finds_nothing(name, launch):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is in the extra `test`")
    checked = run("shellcheck", "--severity=style", launch / name)
    assert checked.returncode == 0, checked.stdout


TRAIN = ("experiments/quickstart.py", "--workdir", "/mnt/runs/a b")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            ("tpu_vm.sh", "create", "--dry-run"),
            "tpu-vm create vitx --zone=us-central1-a --accelerator-type=v5litepod-16",
        ),
        (("tpu_vm.sh", "run", "--dry-run", *TRAIN), r"--workdir /mnt/runs/a\ b --distributed > ../train.log"),
        (("tpu_vm.sh", "follow", "--dry-run"), "--worker=0 --command=tail -n 100 -f train.log"),
        (("tpu_vm.sh", "delete", "--dry-run"), "tpu-vm delete vitx --zone=us-central1-a --quiet"),
        (("slurm.sh", "--dry-run", *TRAIN), "srun --kill-on-bad-exit=1 vitx train experiments/quickstart.py"),
        (("gke.sh", "run", "--dry-run"), "kubectl apply -f"),
        (("gke.sh", "follow", "--dry-run"), "kubectl logs --follow"),
        (("gke.sh", "delete", "--dry-run"), "kubectl delete -f"),
    ],
)
def test_a_dry_run_prints_what_it_would_do(command, expected, launch):
    done = run("bash", launch / command[0], *command[1:])
    assert done.returncode == 0 and expected in done.stdout, done.stderr


@pytest.mark.parametrize("command", [("tpu_vm.sh",), ("tpu_vm.sh", "install"), ("slurm.sh",), ("gke.sh", "fly")])
def test_half_a_command_is_told(command, launch):
    done = run("bash", launch / command[0], *command[1:])
    assert done.returncode == 2 and done.stderr and not done.stdout


def test_the_jobset_has_what_its_schema_requires(launch):
    jobset = yaml.safe_load((launch / "jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["name"] == "vitx"
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] and pod["restartPolicy"] in ("Never", "OnFailure")
    (container,) = pod["containers"]
    assert container["command"][:2] == ["vitx", "train"] and "--distributed" in container["args"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    x, y = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert x * y == spec["completions"] * container["resources"]["limits"]["google.com/tpu"]
