//! The wheel of scripts/wheel, packed from the binary under test and installed into fresh virtual environments.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::{outcome, python_path, read_json};

/// A training of a second, after `train`.
const SHORT: &str = "quickstart --threads 1 --set train.epochs=1 --set data.train.shapes.count=200 \
    --set data.test.shapes.count=100";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a Python prints for an expression, None where it fails.
fn answer(python: &Path, code: &str) -> Option<String> {
    let output = Command::new(python).args(["-c", code]).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// An environment in which the wheel is installed. What each test changes it keeps in folders of its own.
struct Installed {
    python: PathBuf,
    command: PathBuf,
    /// The folder that holds `tikhonov_train`.
    site: PathBuf,
}

impl Installed {
    fn command(&self) -> Command {
        plain(&self.command)
    }
}

/// A command without what this process knows of places.
fn plain(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    for name in ["LD_LIBRARY_PATH", "LIBTORCH", "PYTHONPATH", "TIKHONOV_PYTHON", "VIRTUAL_ENV"] {
        command.env_remove(name);
    }
    command.env("OMP_NUM_THREADS", "1");
    command
}

fn succeeds(command: &mut Command) -> String {
    let (code, stdout, stderr) = outcome(command.output().expect("it starts"));
    assert_eq!(code, 0, "{command:?}\n{stdout}\n{stderr}");
    stdout
}

/// The folder of this run of the tests, the wheel, and the folder of packages that holds torch 2.11. None, said
/// aloud, where something is missing.
fn wheel(test: &str) -> Option<&'static (PathBuf, PathBuf, PathBuf)> {
    static WHEEL: OnceLock<Result<(PathBuf, PathBuf, PathBuf), String>> = OnceLock::new();
    let made = WHEEL.get_or_init(|| {
        for (tool, argument) in [("readelf", "--version"), ("strip", "--version"), ("bash", "--version")] {
            let found = Command::new(tool).arg(argument).output().is_ok_and(|output| output.status.success());
            found.then_some(()).ok_or_else(|| format!("no {tool} here"))?;
        }
        let python = python_path();
        answer(&python, "import pip, venv")
            .ok_or_else(|| format!("{} has no pip or no venv", python.display()))?;
        let torch = "import importlib.util as i; print(i.find_spec('torch').submodule_search_locations[0])";
        let torch = answer(&python, torch).map(PathBuf::from);
        let version = torch.as_ref().and_then(|torch| fs::read_to_string(torch.join("version.py")).ok());
        if !version.is_some_and(|text| text.contains("__version__ = '2.11.")) {
            return Err(format!("{} has no torch 2.11", python.display()));
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wheel");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let script = root().join("scripts/wheel");
        let given = ["--binary", env!("CARGO_BIN_EXE_tikhonov"), "-o"];
        let printed = succeeds(plain(script).args(given).arg(&folder));
        Ok((folder, printed.trim().into(), torch.unwrap().parent().unwrap().to_owned()))
    });
    made.as_ref().map_err(|reason| eprintln!("SKIPPED {test}: {reason}")).ok()
}

/// A fresh environment of `python` with the wheel, and with torch by a .pth file.
fn install(name: &str, python: &Path, (folder, wheel, torch): &(PathBuf, PathBuf, PathBuf)) -> Installed {
    let venv = folder.join(name);
    succeeds(plain(python).args(["-m", "venv", "--without-pip"]).arg(&venv));
    let python = venv.join("bin/python");
    let options =
        ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"];
    succeeds(plain(python_path()).args(["-m", "pip", "--python"]).arg(&python).args(options).arg(wheel));
    let site =
        PathBuf::from(answer(&python, "import sysconfig; print(sysconfig.get_path('platlib'))").unwrap());
    fs::write(site.join("torch.pth"), torch.to_str().unwrap()).unwrap();
    Installed { python, command: venv.join("bin/tikhonov"), site }
}

/// The environment that most tests use: of the Python for which torch was installed.
fn installed(test: &str) -> Option<&'static Installed> {
    static INSTALLED: OnceLock<Installed> = OnceLock::new();
    let made = wheel(test)?;
    Some(INSTALLED.get_or_init(|| install("venv", &python_path(), made)))
}

#[test]
fn a_wheel_names_what_it_requires_and_has_a_tag_by_its_symbols() {
    let Some(venv) = installed("a_wheel_names_what_it_requires") else { return };
    let (folder, wheel, _) = wheel("").unwrap();
    let name = wheel.file_name().unwrap().to_str().unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let start = format!("tikhonov_train-{version}-py3-none-manylinux_2_");
    assert!(
        name.starts_with(&start) && name.ends_with(&format!("_{}.whl", std::env::consts::ARCH)),
        "{name}"
    );
    let info = venv.site.join(format!("tikhonov_train-{version}.dist-info"));
    let metadata = fs::read_to_string(info.join("METADATA")).unwrap();
    for line in ["Name: tikhonov-train", "Requires-Dist: torch==2.11.*", "Requires-Python: >=3.10"] {
        assert!(metadata.lines().any(|found| found == line), "no {line} in\n{metadata}");
    }
    let binary = venv.site.join("tikhonov_train/bin/tikhonov");
    let dynamic = succeeds(Command::new("readelf").arg("-d").arg(&binary));
    assert!(dynamic.contains("(RPATH)") && dynamic.contains("[$ORIGIN/../../torch/lib]"), "{dynamic}");
    assert!(!dynamic.contains("(RUNPATH)"), "{dynamic}");
    // A binary that looks for torch elsewhere is refused.
    let mut pack = plain(python_path());
    pack.arg(root().join("scripts/wheel.py")).args(["--binary", env!("CARGO_BIN_EXE_tikhonov"), "-o"]);
    let (code, _, stderr) = outcome(pack.arg(folder.join("refused")).output().unwrap());
    assert!(code == 1 && stderr.contains("does not look for torch in $ORIGIN/../../torch/lib"), "{stderr}");
    pack.args(["--set-rpath", "--foreign", "tikhonov_"]);
    let (code, _, stderr) = outcome(pack.output().unwrap());
    assert!(code == 1 && stderr.contains("holds a path of this machine"), "{stderr}");
    assert!(!folder.join("refused").exists());
}

/// (version, path) of each Python of 3.10 and later: in PATH, behind pyenv, and the tests' own.
fn pythons() -> BTreeMap<String, PathBuf> {
    let names = (10..=14).map(|minor| PathBuf::from(format!("python3.{minor}")));
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let pyenv = fs::read_dir(home.join(".pyenv/versions")).into_iter().flatten().flatten();
    let pyenv = pyenv.map(|entry| entry.path().join("bin/python3"));
    let code = "import sys, venv; assert sys.version_info >= (3, 10); print('%d.%d' % sys.version_info[:2])";
    let found = names.chain(["python3".into()]).chain(pyenv).chain([python_path()]);
    found.filter_map(|python| Some((answer(&python, code)?, python))).collect()
}

#[test]
fn an_installed_wheel_trains_from_an_empty_folder_with_every_python_at_hand() {
    let Some(made) = wheel("an_installed_wheel_trains_from_an_empty_folder") else { return };
    let pythons = pythons();
    eprintln!("Pythons at hand: {}", pythons.keys().cloned().collect::<Vec<_>>().join(", "));
    for (version, python) in pythons {
        let venv = install(&version, &python, made);
        let empty = TempDir::new().unwrap();
        let doctor = succeeds(venv.command().arg("doctor").current_dir(&empty));
        assert!(doctor.contains("ok             one libtorch") && !doctor.contains("BROKEN"), "{doctor}");
        succeeds(venv.command().arg("train").args(SHORT.split_whitespace()).current_dir(&empty));
        let result = read_json(empty.path().join("runs/quickstart/result.json"));
        assert_eq!(result["epochs"], 1, "{version}");
        let module = ["-m", "tikhonov_train", "--version"];
        let printed = succeeds(plain(&venv.python).args(module).current_dir(&empty));
        assert_eq!(printed, concat!("tikhonov ", env!("CARGO_PKG_VERSION"), "\n"));
    }
}

/// Runs with the sources and the build folder hidden behind empty folders.
#[test]
fn an_installed_wheel_uses_nothing_of_the_build_tree() {
    let test = "an_installed_wheel_uses_nothing_of_the_build_tree";
    let Some(venv) = installed(test) else { return };
    let own_mounts = ["--mount", "--map-root-user"];
    let is_allowed = Command::new("unshare").args(own_mounts).arg("true").output();
    if !is_allowed.is_ok_and(|output| output.status.success()) {
        return eprintln!("SKIPPED {test}: no mount namespace here (unshare --mount --map-root-user)");
    }
    let empty = TempDir::new().unwrap();
    let built = Path::new(env!("CARGO_BIN_EXE_tikhonov"));
    let folders = ["src", "models", "configs", "python"].map(|name| root().join(name));
    let script = "for folder in \"$1\" \"$2\" \"$3\" \"$4\" \"$5\"; do mount -t tmpfs none \"$folder\" || exit 99; done
        shift 5; test -e \"$1\" && exit 98; shift; exec \"$@\"";
    let mut command = plain("unshare");
    command.args(own_mounts).args(["sh", "-c", script, "sh"]).arg(built.parent().unwrap()).args(folders);
    command.arg(built).arg(&venv.command).arg("train").args(SHORT.split_whitespace());
    succeeds(command.current_dir(&empty));
    assert!(empty.path().join("runs/quickstart/result.json").exists());
}

#[test]
fn without_torch_or_with_another_one_the_command_says_which_to_install() {
    let Some(venv) = installed("without_torch_or_with_another_one") else { return };
    let home = TempDir::new().unwrap();
    succeeds(plain(&venv.python).args(["-m", "venv", "--without-pip"]).arg(home.path().join("bare")));
    let run = |packages: &Path| {
        let mut command = plain(home.path().join("bare/bin/python"));
        command.args(["-m", "tikhonov_train", "doctor"]).env("PYTHONPATH", packages);
        outcome(command.output().unwrap())
    };
    // The environment's .pth file does not count in PYTHONPATH.
    let (code, stdout, stderr) = run(&venv.site);
    assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
    assert!(stderr.starts_with("error: there is no torch in "), "{stderr}");
    assert!(stderr.trim_end().ends_with("-m pip install 'torch==2.11.*'"), "{stderr}");
    let other = home.path().join("other");
    fs::create_dir_all(other.join("torch/lib")).unwrap();
    symlink(venv.site.join("tikhonov_train"), other.join("tikhonov_train")).unwrap();
    for (file, text) in
        [("__init__.py", ""), ("version.py", "__version__ = '2.10.0+cpu'\n"), ("lib/libtorch_cpu.so", "")]
    {
        fs::write(other.join("torch").join(file), text).unwrap();
    }
    let (code, stdout, stderr) = run(&other);
    assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
    assert!(
        stderr.contains("error: torch 2.10.0+cpu is in ") && stderr.contains("built for torch 2.11\n"),
        "{stderr}"
    );
}

#[test]
fn a_library_path_with_another_libtorch_does_not_mislead_a_wheel_beside_torch() {
    let Some(venv) = installed("a_library_path_with_another_libtorch") else { return };
    let home = TempDir::new().unwrap();
    let package = home.path().join("tikhonov_train");
    fs::create_dir_all(package.join("bin")).unwrap();
    for file in ["__init__.py", "__main__.py", "launcher.py", "bin/tikhonov"] {
        fs::copy(venv.site.join("tikhonov_train").join(file), package.join(file)).unwrap();
    }
    let (_, _, torch) = wheel("").unwrap();
    symlink(torch.join("torch"), home.path().join("torch")).unwrap();
    fs::create_dir(home.path().join("bad")).unwrap();
    fs::write(home.path().join("bad/libc10.so"), "no library").unwrap();
    let mut command = plain(&venv.python);
    command.args(["-m", "tikhonov_train", "summary", "quickstart"]).current_dir(&home);
    succeeds(command.env("LD_LIBRARY_PATH", home.path().join("bad")));
}

/// The shortest of some runs.
fn shortest(mut command: Command) -> Duration {
    let once = |_| {
        let began = Instant::now();
        assert!(command.stdout(Stdio::null()).status().unwrap().success());
        began.elapsed()
    };
    (0..20).map(once).min().unwrap()
}

/// 16 ms were measured on a machine at rest; what imports torch or pandas takes a second.
#[test]
fn the_command_of_a_wheel_starts_soon() {
    let Some(venv) = installed("the_command_of_a_wheel_starts_soon") else { return };
    let home = TempDir::new().unwrap();
    let package = home.path().join("tikhonov_train");
    fs::create_dir_all(package.join("bin")).unwrap();
    for file in ["__init__.py", "launcher.py"] {
        fs::copy(venv.site.join("tikhonov_train").join(file), package.join(file)).unwrap();
    }
    let instead = answer(&venv.python, "import shutil; print(shutil.which('true'))").unwrap();
    fs::copy(&instead, package.join("bin/tikhonov")).unwrap();
    let mut command = plain(&venv.python);
    command.args(["-c", "from tikhonov_train.launcher import main; main()"]).current_dir(&home);
    let overhead = shortest(command).saturating_sub(shortest(plain(&instead)));
    eprintln!("the launcher takes {:.1} ms", overhead.as_secs_f64() * 1e3);
    assert!(overhead < Duration::from_millis(100), "{overhead:?}");
}

/// The Python of docs/notebooks.md, and of `after`, in an empty folder.
#[test]
fn the_snippets_of_the_notebook_page_run() {
    let Some(venv) = installed("the_snippets_of_the_notebook_page_run") else { return };
    let page = fs::read_to_string(root().join("docs/notebooks.md")).unwrap();
    let mut blocks: Vec<&str> =
        page.split("```python\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() > 1, "{} blocks", blocks.len());
    blocks.push(AFTER_THE_PAGE);
    let empty = TempDir::new().unwrap();
    let printed = succeeds(plain(&venv.python).arg("-c").arg(blocks.join("\n")).current_dir(&empty));
    assert!(printed.contains("epoch 2/2 · loss"), "progress is not shown:\n{printed}");
    assert!(printed.contains("2 --set penalty.l3=1: unknown key; did you mean `l2`?"), "{printed}");
    assert!(!printed.contains("\nerror: "), "an error that is raised is printed too:\n{printed}");
    assert!(printed.ends_with("all there\n"), "{printed}");
}

const AFTER_THE_PAGE: &str = r#"
import json, pathlib, sys, types, torch

assert run.result == json.loads(pathlib.Path("runs/first/result.json").read_text())
rows = run.metrics.to_dict("records") if "pandas" in sys.modules else run.metrics
assert [row["epoch"] for row in rows] == [1, 2] and rows[1]["lambda.weights.l2"] == 5e-4
assert rows[1]["validation.accuracy"] == run.result["last"]["validation"]["accuracy"]
assert [row["step"] for row in Run("runs/first").steps] == []
assert run.plot("loss")._repr_png_()[:4] == b"\x89PNG" and "loss" in run.plots
assert run._repr_html_().count("<img") == len(run.plots) and "accuracy" in run._repr_html_()
assert "epochs: 2" in run.config

# The same network as TorchScript has, best weights and last.
for name in [None, "last"]:
    call("export", run.path, "--to", "torchscript", "-o", "net.pt", "--force", *(["--checkpoint", name] if name else []))
    x = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(run.model(name)(x), torch.jit.load("net.pt")(x))
assert net.metadata["classes"][0] == "disc" and not net.training and net is not run.model()

# A DataFrame where pandas can be imported.
sys.path.insert(0, "stub")
pathlib.Path("stub").mkdir()
pathlib.Path("stub/pandas.py").write_text("class DataFrame:\n    def __init__(self, rows): self.rows = rows\n")
for name in [name for name in sys.modules if name.split(".")[0] == "pandas"]:
    del sys.modules[name]
assert Run("runs/first").metrics.rows == rows

def fails(code, words, *arguments, **options):
    try:
        train(*arguments, show=False, **options)
    except TikhonovError as error:
        assert error.exit_code == code and words in str(error) and not str(error).startswith("error"), str(error)
    else:
        raise AssertionError(words)

fails(2, "holds a run already", mine, output="runs/first")
fails(2, "output='runs/NAME'", mine)
fails(3, "stub", mine, output="runs/x", data__train={"folder": {"root": pathlib.Path("stub"), "size": 28}})
fails(4, "colleague", mine, output="runs/x", model__init_from=pathlib.Path("colleague.pth"))
train(mine, output="runs/first", force=True, show=False)
train(mine, output="runs/first", resume=True, show=False, train__epochs=2)
assert run.result["epochs"] == 2
for wrong in [lambda: run.plot("los"), lambda: Run("stub")]:
    try:
        wrong()
    except (KeyError, FileNotFoundError):
        continue
    raise AssertionError("no error")
print("all there")
"#;

/// As a terminal does it: the signal reaches Python and the command at once.
#[test]
fn an_interrupt_of_python_saves_the_run_and_is_a_keyboard_interrupt() {
    let Some(venv) = installed("an_interrupt_of_python_saves_the_run") else { return };
    let home = TempDir::new().unwrap();
    // A shell's background job is started with the signal ignored, and so would Python be here.
    let script = "import signal
from tikhonov_train import train
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    train('quickstart', train__epochs=5000, threads=1, **{'data.train.shapes.count': 300, 'data.test.shapes.count': 20})
except KeyboardInterrupt as told:
    print('interrupted:', told)";
    let mut command = plain(&venv.python);
    command.args(["-c", script]).current_dir(&home).process_group(0);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (metrics, began) = (home.path().join("runs/quickstart/metrics.jsonl"), Instant::now());
    while !fs::read_to_string(&metrics).is_ok_and(|text| text.contains("\"epoch\":2")) {
        assert!(began.elapsed() < Duration::from_secs(120), "it does not train");
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = Command::new("kill").args(["-INT", "--", &format!("-{}", child.id())]).status().unwrap();
    assert!(sent.success());
    let (code, stdout, stderr) = outcome(child.wait_with_output().unwrap());
    assert!(code == 0 && stdout.contains("interrupted: "), "{code}\n{stdout}\n{stderr}");
    assert!(stdout.contains("--resume"), "the command did not say that it has saved:\n{stdout}");
    assert!(home.path().join("runs/quickstart/checkpoints/last/state.json").exists());
}
