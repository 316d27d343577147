"""`train`, `Run` and `call`: the binary runs, its lines are shown as they come, its files are read."""

import base64
import html
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

from . import launcher


class TikhonovError(Exception):
    """A command failed. `exit_code` says how: 2 usage or config, 3 data, 4 checkpoint or model file, 5 NaN,
    6 memory, 7 storage, 75 interrupted and saved; negative, the signal that ended it."""

    def __init__(self, message, exit_code):
        super().__init__(message)
        self.exit_code = exit_code


def call(*arguments, show=False):
    """Runs `tikhonov ARGUMENTS` and returns what it printed, as text; `show` prints each line as it comes, those of
    its progress too. Ctrl-C (in Jupyter: interrupt) goes on to the command: training saves, then KeyboardInterrupt."""
    try:
        environment = launcher.environment()
    except launcher.NoTorch as error:
        raise TikhonovError(str(error), 2) from None
    output, lines, interrupted = tempfile.TemporaryFile("w+", encoding="utf-8"), [], False
    # Ctrl-C in a terminal reaches all processes of its group, an interrupt of Jupyter perhaps this one alone. The
    # command hears of neither, but from here once of each: a second signal would end it unsaved.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process = subprocess.Popen(
            [launcher.BINARY, *map(_text, arguments)], env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if show else output, stderr=subprocess.STDOUT if show else subprocess.PIPE,
            text=True, encoding="utf-8", errors="replace",
        )
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise TikhonovError(f"{launcher.BINARY} does not start: {error.strerror}", 2) from error
    is_merged, stream = show, process.stdout or process.stderr
    while process.returncode is None:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for line in stream:
                lines.append(line)
                # The message of an error is the exception's.
                show = show and not line.startswith("error:")
                if show:
                    print(line, end="", flush=True)
            process.wait()
        except KeyboardInterrupt:
            interrupted = True
            process.terminate()
        except BaseException:
            process.kill()
            raise
    stream.close()
    with output:
        output.seek(0)
        text = "".join(lines) if is_merged else output.read()
    if interrupted:
        raise KeyboardInterrupt(_error(lines))
    if process.returncode != 0:
        raise TikhonovError(_error(lines) or f"tikhonov ended with {process.returncode}", process.returncode)
    return text


def _text(argument):
    return os.fspath(argument) if isinstance(argument, os.PathLike) else str(argument)


def _error(lines):
    """The message of a failed command: from its first `error:` on, else its last lines."""
    starts = [index for index, line in enumerate(lines) if line.startswith(("error:", "internal error"))]
    return "".join(lines[starts[0]:] if starts else lines[-5:]).removeprefix("error: ").strip()


def train(config, *, output=None, resume=False, force=False, show=True, **overrides):
    """Trains and returns the Run. `config` is a path, the name of a shipped config, a run folder, or a dict of what
    the YAML would hold, which needs `output` or a key `output`. `overrides` are keys of the config, as `--set` has
    them; for a dot in a name write two underscores, or pass a dict: `train(c, train__epochs=3, **{"penalty.l2": 0})`.
    `resume` goes on with the run in `output`, `force` replaces it. Errors are TikhonovError."""
    options = [f"--set={key.replace('__', '.')}={_json(value)}" for key, value in overrides.items()]
    options += [f"--output={os.fspath(output)}"] if output is not None else []
    options += ["--resume"] * bool(resume) + ["--force"] * bool(force)
    if not isinstance(config, dict):
        return Run(_saved_in(call("train", os.fspath(config), *options, show=show)))
    if output is None and not config.get("output"):
        raise TikhonovError("a config that is a dict has no file name to call its run by\n  pass output='runs/NAME'", 2)
    with tempfile.TemporaryDirectory() as folder:
        # JSON is YAML.
        path = pathlib.Path(folder, "config.yaml")
        path.write_text(_json(config), encoding="utf-8")
        return Run(_saved_in(call("train", path, *options, show=show)))


def _json(value):
    """A path as its text, a number of numpy as Python's."""
    plain = lambda other: os.fspath(other) if isinstance(other, os.PathLike) else other.tolist()
    return json.dumps(value, default=plain, allow_nan=False)


def _saved_in(output):
    """The run folder: the last thing that a training prints."""
    return [line for line in output.splitlines() if line.startswith("saved in ")][-1].removeprefix("saved in ")


class Plot:
    """A PNG file, which a notebook shows."""

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def _repr_png_(self):
        return self.path.read_bytes()

    def __repr__(self):
        return f"Plot({str(self.path)!r})"


class Run:
    """A run folder. Everything is read when it is asked for: of a run that still trains, what is there by then."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        if not (self.path / "config.yaml").is_file():
            raise FileNotFoundError(f"{self.path} is no run folder: it has no config.yaml")

    def __repr__(self):
        return f"Run({str(self.path)!r})"

    @property
    def config(self):
        """The complete config, as YAML."""
        return (self.path / "config.yaml").read_text(encoding="utf-8")

    @property
    def result(self):
        """result.json: the scores of the `last` and the `best` weights. None while there is no result."""
        file = self.path / "result.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    @property
    def metrics(self):
        """A row per epoch, with columns such as `validation.loss`: a DataFrame, without pandas a list of dicts."""
        return self._records("epoch")

    @property
    def steps(self):
        """A row per logged step, as `metrics`."""
        return self._records("step")

    def _records(self, kind):
        text = (self.path / "metrics.jsonl").read_text(encoding="utf-8")
        # What follows the last line break is still being written.
        records = [json.loads(line) for line in text.split("\n")[:-1]]
        rows = [dict(_flat(record)) for record in records if record.pop("kind") == kind]
        if importlib.util.find_spec("pandas") is None:
            return rows
        import pandas

        return pandas.DataFrame(rows)

    @property
    def plots(self):
        """The names that `plot` takes."""
        return sorted(file.stem for file in (self.path / "plots").glob("*.png"))

    def plot(self, name="loss"):
        if name not in self.plots:
            raise KeyError(f"{self.path} has no plot {name!r}; it has {', '.join(self.plots) or 'none'}")
        return Plot(self.path / "plots" / f"{name}.png")

    def _repr_html_(self):
        text = f"<p><b>{html.escape(str(self.path))}</b></p>"
        scores = [(f"{which} {split}", values) for which in ("last", "best")
                  for split, values in (self.result or {}).get(which, {}).items() if isinstance(values, dict)]
        for name, values in scores:
            listed = ", ".join(f"{key} {value:.4g}" for key, value in values.items() if isinstance(value, (int, float)))
            text += f"<p>{html.escape(f'{name}: {listed}')}</p>"
        for name in self.plots:
            data = base64.b64encode(self.plot(name)._repr_png_()).decode()
            text += f'<img alt="{html.escape(name)}" style="max-width: 49%" src="data:image/png;base64,{data}">'
        return text

    def model(self, checkpoint=None, raw=False):
        """The network as an `nn.Module` in evaluation mode, with its weights: those of `best` (else of `last`), or of
        `checkpoint`; averaged ones unless `raw`. `model().metadata` has classes, mean and std: the network takes
        (x - mean) / std. Needs torch."""
        import torch

        options = ([f"--checkpoint={checkpoint}"] if checkpoint else []) + ["--raw"] * bool(raw)
        with tempfile.TemporaryDirectory() as folder:
            source, weights = pathlib.Path(folder, "net.py"), pathlib.Path(folder, "net.pth")
            call("export", self.path, "--to", "python", "-o", source, *options)
            call("export", self.path, "--to", "state-dict", "-o", weights, *options)
            state = torch.load(weights, weights_only=True)
            text = source.read_text(encoding="utf-8")
        # A module that is known under its name: torch.save and inspect find the class in it.
        name = f"{__package__}.model_{abs(hash(text)):x}"
        module = type(sys)(name)
        sys.modules[name] = module
        exec(compile(text, f"<{self.path}: model>", "exec"), module.__dict__)
        network = module.Net()
        network.load_state_dict(state, strict=True)
        network.metadata = dict(getattr(state, "metadata", {}))
        return network.eval()


def _flat(record, prefix=""):
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
