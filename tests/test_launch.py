"""Launch scripts pass shellcheck, dry runs print every command, and the manifest has what its schema requires."""

import os
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
def test_shellcheck_passes(name, launch):
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
        (("tpu_vm.sh", "run", "--dry-run", *TRAIN), r">>\ ../train.log\ 2\>\&1\ \&".replace(">>", r"\>\>")),
        (("tpu_vm.sh", "run", *TRAIN, "--dry-run"), r"--workdir"),
        (("tpu_vm.sh", "--dry-run", "follow"), r"--worker=0 --command=tail\ -n\ 100\ -f\ train.log"),
        (("tpu_vm.sh", "delete", "--dry-run"), "tpu-vm delete vitx --zone=us-central1-a --quiet"),
        (("slurm.sh", "--dry-run", *TRAIN), "srun --cpus-per-task=8 --kill-on-bad-exit=1 vitx train experiments/"),
        (("slurm.sh", *TRAIN, "--dry-run"), r"--workdir /mnt/runs/a\ b --distributed"),
        (("gke.sh", "--dry-run", "run"), "kubectl apply -f"),
        (("gke.sh", "follow", "--dry-run"), "kubectl logs --follow"),
        (("gke.sh", "delete", "--dry-run"), "kubectl delete -f"),
    ],
)
@pytest.mark.smoke
def test_a_dry_run_prints_its_commands(command, expected, launch):
    done = run("bash", launch / command[0], *command[1:])
    assert done.returncode == 0 and expected in done.stdout, done.stderr


def test_slurm_starts_one_process_per_gpu_and_a_requeued_job_keeps_its_log(launch):
    """In SLURM, JAX gives a process the one device that has its number on the node."""
    lines = [line.split("--")[1] for line in (launch / "slurm.sh").read_text().splitlines() if "#SBATCH" in line]
    options = dict(line.partition("=")[::2] for line in lines)
    assert options["ntasks-per-node"] == options["gpus-per-node"] == "8"
    assert not {"gpus-per-task", "gpu-bind"} & options.keys()
    assert {"open-mode": "append", "requeue": "", "signal": "TERM@300"}.items() <= options.items()


@pytest.mark.parametrize("status", [0, 1, 2, 75])
def test_a_tpu_vm_repeats_the_command_while_it_exits_with_75(status, launch, tmp_path):
    """Runs what `run` sends to the workers, with a `vitx` that records its arguments and exits with a status."""
    vitx, gcloud = tmp_path / "venv" / "bin" / "vitx", tmp_path / "gcloud"
    (tmp_path / "vitx").mkdir()
    vitx.parent.mkdir(parents=True)
    vitx.write_text(f"""#!/usr/bin/env bash
printf '<%s>' "$@"; echo
[ "$(wc -l < ../train.log)" -ge 4 ] || exit {status}
""")
    gcloud.write_text('#!/usr/bin/env bash\ncd "$HOME"; last=${!#}; bash -c "${last#--command=} wait"\n')
    vitx.chmod(0o755)
    gcloud.chmod(0o755)
    (tmp_path / "train.log").write_text("earlier line\n")
    words = ["bash", launch / "tpu_vm.sh", "run", *TRAIN]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    subprocess.run(words, check=True, env=environment, timeout=60, capture_output=True)
    first, *calls = (tmp_path / "train.log").read_text().splitlines()
    assert first == "earlier line" and len(calls) == (3 if status == 75 else 1)
    assert set(calls) == {"<train><experiments/quickstart.py><--workdir></mnt/runs/a b><--distributed>"}


@pytest.mark.parametrize("command", [("tpu_vm.sh",), ("tpu_vm.sh", "install"), ("slurm.sh",), ("gke.sh", "fly")])
def test_an_incomplete_command_exits_with_2(command, launch):
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
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2],
    }
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    options = pod["volumes"][0]["csi"]["volumeAttributes"]["mountOptions"].split(",")
    assert "implicit-dirs" in options and any(option.startswith("rename-dir-limit=") for option in options)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    x, y = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert x * y == spec["completions"] * container["resources"]["limits"]["google.com/tpu"]
