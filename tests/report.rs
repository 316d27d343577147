//! Reports and lists of runs, looked at as a reader does: in a browser.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::common::{outcome, python, read_json, run, succeeds};

const CLASSES: &str = "
seed: 1
device: cpu
threads: 1
model: {name: small-cnn, args: {channels: 1, size: 16, classes: 10, width: 4}}
task: classification
data:
  train: {shapes: {count: 240, size: 16}}
  validation: {fraction: 0.25}
  batch_size: 20
penalty: {l1: 1.0e-3, groups: [{match: 'fc.*', l2: {start: 1.0e-5, end: 1.0e-2, epochs: 1}}]}
optimizer: {sgd: {lr: 0.05}}
train: {epochs: 3, log_every: 1}
";

const NUMBERS: &str = "
seed: 1
device: cpu
threads: 1
model: {name: linear, args: {features: 1, outputs: 1}}
task: {regression: {loss: half_mse}}
data:
  train: {line: {slope: 3, intercept: 2, noise: 0.1, low: 0, high: 1, count: 120}}
  validation: {fraction: 0.25}
  batch_size: 30
  normalize: none
penalty: {l2: 0.1}
optimizer: {sgd: {lr: 0.1}}
train: {epochs: 3}
";

/// What would run, load or break out if a name were written as it is.
const HOSTILE: &str = "a<img src=x onerror=boom()>&\"'b";

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn config(&self, name: &str, text: &str) -> String {
        fs::write(self.at(name), text).unwrap();
        self.at(name)
    }

    /// A run of an earlier version: no λ, no layers, a loss that was NaN for a while, a line that was cut
    /// off.
    fn old_run(&self, name: &str) -> String {
        let folder = self.at(name);
        fs::create_dir_all(&folder).unwrap();
        let config = format!(
            "task: classification\npenalty: {{l2: 0.01}}\noptimizer: {{sgd: {{lr: 0.1}}}}\nnote: '</script>{}'\n",
            HOSTILE.replace('\'', "")
        );
        fs::write(format!("{folder}/config.yaml"), config).unwrap();
        let mut lines = String::new();
        for step in 1..=6000u32 {
            let loss =
                if (2000..2500).contains(&step) { Value::Null } else { json!(2.0 / f64::from(step).sqrt()) };
            let epoch = step.div_ceil(3000);
            lines += &format!(
                "{}\n",
                json!({"kind": "step", "epoch": epoch, "step": step, "loss": loss, "lr": 0.1, "grad_norm": 1.0})
            );
            if step % 3000 == 0 {
                lines += &format!(
                    "{}\n",
                    json!({"kind": "epoch", "epoch": epoch, "step": step, "loss": 0.1, "penalty": 0.2, "lr": 0.1,
                           "weight_norm": 3.0, "zeros": 0.0, "images_per_s": 100.0, "seconds": 7.0,
                           "validation": {"loss": 0.5, "accuracy": if epoch == 1 { 0.5 } else { 0.6 }}})
                );
            }
        }
        fs::write(format!("{folder}/metrics.jsonl"), lines + "{\"kind\": \"step\", \"epo").unwrap();
        folder
    }
}

/// The distribution's browser; None, said aloud, where there is none.
fn chromium(test: &str) -> Option<PathBuf> {
    let known = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .flat_map(|folder| known.map(|name| folder.join(name)))
        .find(|file| file.is_file());
    if found.is_none() {
        eprintln!("SKIPPED {test}: no Chromium; install the package `chromium`");
    }
    found
}

/// Opens `html` and returns the text of `#facts`, and what the browser's console said.
fn browse(browser: &Path, html: &str, more: &[&str]) -> (Value, String) {
    let home = tempfile::tempdir().unwrap();
    let page = home.path().join("page.html");
    fs::write(&page, html).unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args([
            "--enable-logging=stderr",
            "--virtual-time-budget=5000",
            "--window-size=1280,900",
            "--dump-dom",
        ])
        .args(more)
        .arg(format!("--user-data-dir={}", home.path().join("profile").display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("the browser starts");
    let (code, dom, stderr) = outcome(output);
    assert_eq!(code, 0, "{stderr}");
    let (_, facts) =
        dom.split_once("<pre id=\"facts\">").unwrap_or_else(|| panic!("no facts in {dom}\n{stderr}"));
    let (facts, _) = facts.split_once("</pre>").unwrap();
    let facts = facts.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&");
    let console =
        stderr.lines().filter(|line| line.contains("CONSOLE")).map(|line| format!("{line}\n")).collect();
    (serde_json::from_str(&facts).unwrap_or_else(|error| panic!("{error}: {facts}\n{stderr}")), console)
}

/// What a browser finds in the report at a width of `width` pixels.
fn look(browser: &Path, report: &str, width: u32, more: &[&str]) -> Value {
    // The report stands in a frame, because a window cannot be as narrow as a phone. Errors are collected
    // from the start.
    let collector = "<script>window.errors = []; addEventListener('error', (e) => errors.push(String(e.message)), true); \
                     addEventListener('unhandledrejection', (e) => errors.push(String(e.reason)));</script>";
    let page = report.replacen("<head>", &format!("<head>{collector}"), 1);
    let page = page.replace('&', "&amp;").replace('"', "&quot;");
    let checks = r#"
addEventListener("load", () => {
  const frame = document.querySelector("iframe"), win = frame.contentWindow, doc = frame.contentDocument;
  const all = (what) => [...doc.querySelectorAll(what)];
  const inside = (svg, text) => {
    const [x, y, width, height] = svg.getAttribute("viewBox").split(" ").map(Number), box = text.getBBox();
    const turned = text.hasAttribute("transform");
    return turned || box.x >= x - 1 && box.x + box.width <= x + width + 1 && box.y >= y - 1 && box.y + box.height <= y + height + 1;
  };
  const drawn = (svg) => [...svg.querySelectorAll("path.l, circle, rect")].some((shape) => {
    const box = shape.getBBox();
    return box.width + box.height > 1;
  });
  const chart = doc.querySelector("figure.chart svg");
  const box = chart.getBoundingClientRect();
  chart.dispatchEvent(new win.PointerEvent("pointermove", { clientX: box.left + box.width * 0.5, clientY: box.top + box.height * 0.5, bubbles: true }));
  const tip = doc.getElementById("tip");
  const told = tip.hidden ? "" : tip.innerText;
  chart.dispatchEvent(new win.PointerEvent("pointerleave", {}));
  const paper = () => win.getComputedStyle(doc.body).backgroundColor;
  const before = paper();
  doc.getElementById("theme").click();
  const after = paper();
  doc.getElementById("theme").click();
  document.getElementById("facts").textContent = JSON.stringify({
    errors: win.errors,
    width: doc.documentElement.scrollWidth,
    sections: all("h2").map((h) => h.textContent),
    figures: all("svg").length,
    empty: all("svg").filter((svg) => !drawn(svg)).map((svg) => svg.getAttribute("aria-label")),
    cut: all("svg").flatMap((svg) => [...svg.querySelectorAll("text")].filter((text) => !inside(svg, text)).map((text) => text.textContent)),
    titles: all("svg").map((svg) => svg.getAttribute("aria-label")),
    curves: all("figure.chart path.l").length,
    images: all("img").map((img) => [img.naturalWidth, img.src.slice(0, 22)]),
    names: all("tbody th").map((cell) => cell.textContent),
    text: doc.body.innerText,
    resources: win.performance.getEntriesByType("resource").filter((entry) => !entry.name.startsWith("data:")).length,
    told, paper: [before, after, paper()], tipGone: tip.hidden,
  });
});"#;
    let html = format!(
        "<!doctype html><meta charset=utf-8><pre id=\"facts\"></pre>\n<iframe style=\"border:0;width:{width}px;height:900px\" srcdoc=\"{page}\"></iframe>\n<script>{checks}</script>"
    );
    let (facts, console) = browse(browser, &html, more);
    assert_eq!(console, "", "the console is silent");
    facts
}

fn list(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_report_of_runs_and_sweeps_is_whole_in_a_browser_wide_and_narrow_light_and_dark() {
    let home = Home::new();
    let classes = home.config("classes.yaml", &format!("{CLASSES}schedule: cosine\n"));
    let numbers = home.config("numbers.yaml", NUMBERS);
    succeeds(&["train", &classes, "--quiet", "--output", &home.at("first")]);
    succeeds(&["train", &classes, "--quiet", "--output", &home.at("second"), "--set", "penalty.l1=0.1"]);
    home.old_run(HOSTILE);
    let one = home.at("one-key");
    succeeds(&["sweep", &numbers, "--over", "penalty.l2=1e-3:10:log:4", "--seeds", "2", "--output", &one]);
    let two = home.at("two-keys");
    let over = ["--over", "penalty.l2=1e-3:1:log:3", "--over", "optimizer.sgd.lr=0.01,0.1,1e30"];
    succeeds(&[&["sweep", &numbers, "--output", &two], over.as_slice()].concat());
    // A picture as PNG is found, another file is not.
    let pictures = home.at("first/pictures");
    fs::create_dir_all(&pictures).unwrap();
    image::RgbImage::from_pixel(9, 5, image::Rgb([200, 30, 30]))
        .save(format!("{pictures}/epoch-0003.png"))
        .unwrap();
    fs::write(format!("{pictures}/notes.txt"), "no picture").unwrap();

    let out = home.at("report.html");
    let folders = [home.at("first"), home.at("second"), home.at(HOSTILE), one, two];
    let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
    succeeds(&[&["report"], folders.as_slice(), &["-o", &out]].concat());
    let report = fs::read_to_string(&out).unwrap();
    assert!(
        !report.contains("<img src=x") && !report.replace("http://www.w3.org/2000/svg", "").contains("http"),
        "nothing is loaded and nothing breaks out"
    );

    let Some(browser) = chromium("a_report_of_runs_and_sweeps_is_whole_in_a_browser") else { return };
    for (width, more) in [(1280, vec![]), (375, vec!["--blink-settings=preferredColorScheme=0"])] {
        let facts = look(&browser, &report, width, &more);
        assert_eq!(facts["errors"], json!([]), "{facts}");
        assert!(
            facts["width"].as_u64().unwrap() <= u64::from(width),
            "the page scrolls sideways: {}",
            facts["width"]
        );
        assert_eq!(facts["empty"], json!([]), "figures without content");
        assert_eq!(facts["cut"], json!([]), "text beyond its figure");
        assert_eq!(facts["resources"], 0);
        let sections = list(&facts["sections"]);
        for wanted in [
            "Sweep one-key",
            "Sweep two-keys",
            "Runs",
            "Curves",
            "Layers",
            "Classes",
            "Pictures",
            "What differs",
        ] {
            assert!(sections.iter().any(|title| title == wanted), "{wanted} in {sections:?}");
        }
        let titles = list(&facts["titles"]);
        for wanted in
            ["data loss, training", "penalty", "λ", "learning rate", "accuracy, validation", "confusion"]
        {
            assert!(titles.iter().any(|title| title == wanted), "{wanted} in {titles:?}");
        }
        assert!(titles.iter().any(|title| title.starts_with("‖w‖₂ of each layer")));
        assert!(
            titles.iter().any(|title| title.starts_with("share of zeros in each layer, second")),
            "{titles:?}"
        );
        assert!(list(&facts["names"]).iter().any(|name| name == HOSTILE), "{}", facts["names"]);
        // A picture of its work, and the first filters of two runs.
        let images = facts["images"].as_array().unwrap();
        assert!(images.len() == 3 && images[0][0] == 9, "{images:?}");
        assert!(images.iter().all(|image| image[1] == "data:image/png;base64,"), "{images:?}");
        assert!(facts["told"].as_str().unwrap().contains("epochs"), "{}", facts["told"]);
        assert_eq!(facts["tipGone"], true);
        let paper = list(&facts["paper"]);
        assert!(paper[0] != paper[1] && paper[0] == paper[2], "{paper:?}");
        assert_eq!(
            paper[0] == "rgb(19, 21, 24)",
            width == 375,
            "dark where the reader has it dark: {paper:?}"
        );
        assert!(
            facts["text"].as_str().unwrap().contains("diverged"),
            "a learning rate of 10³⁰ diverges, and that is told"
        );
    }
}

#[test]
fn a_report_replaces_a_report_and_nothing_else() {
    let home = Home::new();
    let folder = home.old_run("old");
    let out = home.at("page.html");
    succeeds(&["report", &folder, "--output", &out]);
    succeeds(&["report", &folder, "--output", &out]);
    fs::write(&out, "my own page").unwrap();
    let (code, _, stderr) = run(&["report", &folder, "--output", &out]);
    assert_eq!(code, 2, "{stderr}");
    assert_eq!(fs::read_to_string(&out).unwrap(), "my own page");
    succeeds(&["report", &folder, "--output", &out, "--force"]);
    assert!(fs::read_to_string(&out).unwrap().contains("</html>"));
    let (code, _, stderr) = run(&["report", &home.at(""), "--output", &home.at("other.html")]);
    assert!(code == 2 && stderr.contains("neither a run nor a sweep"), "{stderr}");
}

#[test]
fn runs_are_listed_sorted_and_told_apart_by_how_they_stand() {
    let home = Home::new();
    let root = home.at("runs");
    let classes = home.config("classes.yaml", CLASSES);
    let train = |name: &str, set: &str| {
        succeeds(&["train", &classes, "--quiet", "--output", &home.at(&format!("runs/{name}")), "--set", set])
    };
    train("deep/weak", "penalty={l2: 1e-4}");
    train("strong", "penalty={l2: 0.1}");
    let (code, _, _) = run(&[
        "train",
        &classes,
        "--quiet",
        "--output",
        &home.at("runs/wild"),
        "--set",
        "optimizer.sgd.lr=1e30",
    ]);
    assert_eq!(code, 5);
    home.old_run("runs/old");
    // Folders that are broken, each in its own way.
    for (name, file, text) in [
        ("broken-config", "config.yaml", "a: [\n\u{0}"),
        ("broken-metrics", "metrics.jsonl", "not json\n{\"kind\": 3}\n"),
        ("a-folder-as-file", "config.yaml", "task: {}"),
        ("nothing", "readme.txt", "no run"),
    ] {
        fs::create_dir_all(home.at(&format!("runs/{name}"))).unwrap();
        fs::write(home.at(&format!("runs/{name}/{file}")), text).unwrap();
    }
    fs::create_dir_all(home.at("runs/a-folder-as-file/metrics.jsonl")).unwrap();

    let listed: Value =
        serde_json::from_str(&succeeds(&["runs", &root, "--json", "--sort", "lambda"])).unwrap();
    let row = |name: &str| {
        listed
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["name"] == name)
            .unwrap_or_else(|| panic!("{name} in {listed}"))
    };
    assert_eq!(listed.as_array().unwrap().len(), 7, "{listed}");
    assert_eq!((&row("deep/weak")["state"], &row("strong")["state"]), (&json!("done"), &json!("done")));
    assert_eq!((&row("wild")["state"], &row("old")["state"]), (&json!("diverged"), &json!("interrupted")));
    assert_eq!(row("a-folder-as-file")["state"], "unreadable");
    assert_eq!(row("deep/weak")["epochs"], 3);
    let result: Value = read_json(home.at("runs/strong/result.json"));
    assert_eq!(row("strong")["best"], result["best"]["validation"]["accuracy"]);
    assert_eq!((row("old")["best"].as_f64(), row("old")["best_epoch"].as_u64()), (Some(0.6), Some(2)));
    let lambdas: Vec<f64> =
        listed.as_array().unwrap().iter().filter_map(|row| row["lambda"].as_f64()).collect();
    assert!(lambdas.is_sorted() && lambdas.len() == 4, "{lambdas:?}");
    assert!(listed[6]["lambda"].is_null(), "those without come last");

    let table = succeeds(&["runs", &root, "--sort", "name", "--reverse"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].contains("run") && lines[1].starts_with("wild"), "{table}");
    let (code, _, stderr) = run(&["runs", &home.at("nowhere")]);
    assert_eq!(code, 2, "{stderr}");
}

#[test]
fn a_finished_run_and_an_interrupted_one_have_their_plots() {
    let home = Home::new();
    let classes = home.config("classes.yaml", &format!("{CLASSES}schedule: cosine\n"));
    succeeds(&["train", &classes, "--quiet", "--output", &home.at("run")]);
    for name in [
        "loss",
        "validation-accuracy",
        "penalty",
        "lambda",
        "lr",
        "weights",
        "zeros",
        "layer-norms",
        "confusion",
    ] {
        let picture = image::open(home.at(&format!("run/plots/{name}.png")))
            .unwrap_or_else(|error| panic!("{name}: {error}"))
            .into_rgb8();
        assert_eq!(picture.width(), 800, "{name}");
        let colored =
            picture.pixels().filter(|p| p.0.iter().max().unwrap() - p.0.iter().min().unwrap() > 60).count();
        assert!(colored > 200, "{name} has {colored} pixels of colour");
    }
}

/// What TensorBoard itself reads from the run: the steps of each scalar, and the names of histograms and
/// pictures.
fn tensorboard(folder: &str) -> Value {
    let told = python(&format!(
        "
import json, os
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(os.path.join({folder:?}, 'tensorboard'), size_guidance={{'scalars': 0, 'histograms': 0, 'images': 0}},
                          purge_orphaned_data=False)
events.Reload()
tags = events.Tags()
print(json.dumps({{
    'scalars': {{tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags['scalars']}},
    'histograms': {{tag: [[e.step, e.histogram_value.num, e.histogram_value.sum, sum(e.histogram_value.bucket),
                          len(e.histogram_value.bucket), e.histogram_value.min, e.histogram_value.max]
                         for e in events.Histograms(tag)] for tag in tags['histograms']}},
    'images': {{tag: [[e.step, e.width, e.height] for e in events.Images(tag)] for tag in tags['images']}},
}}))
"
    ));
    serde_json::from_str(&told).unwrap()
}

#[test]
fn tensorboard_reads_every_curve_and_a_killed_run_that_goes_on_tells_no_step_twice() {
    let home = Home::new();
    let classes = home.config("classes.yaml", CLASSES);
    let (run_folder, undisturbed) = (home.at("run"), home.at("undisturbed"));
    let arguments =
        ["train", &classes, "--quiet", "--tensorboard", "--set", "train.checkpoint.every_steps=2"];
    succeeds(&[arguments.as_slice(), &["--output", &undisturbed]].concat());
    succeeds(&[arguments.as_slice(), &["--output", &run_folder, "--set", "train.epochs=2"]].concat());

    // As a process leaves it that is killed in the second epoch: later checkpoints are missing, a record is
    // half written.
    let checkpoints = format!("{run_folder}/checkpoints");
    let last = fs::read_link(format!("{checkpoints}/last")).unwrap();
    let earlier = (fs::read_dir(&checkpoints).unwrap().flatten())
        .map(|entry| entry.file_name())
        .filter(|name| last.file_name() != Some(name) && !["last", "best"].contains(&name.to_str().unwrap()))
        .max()
        .expect("a checkpoint from before the last");
    fs::remove_file(format!("{checkpoints}/last")).unwrap();
    std::os::unix::fs::symlink(&earlier, format!("{checkpoints}/last")).unwrap();
    let file = fs::read_dir(format!("{run_folder}/tensorboard")).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&file).unwrap();
    fs::write(&file, [whole.as_slice(), &whole[..40]].concat()).unwrap();
    let pictures = format!("{run_folder}/pictures");
    fs::create_dir_all(&pictures).unwrap();
    succeeds(&[arguments.as_slice(), &["--output", &run_folder, "--resume"]].concat());

    let (told, expected) = (tensorboard(&run_folder), tensorboard(&undisturbed));
    let scalars = told["scalars"].as_object().unwrap();
    for (tag, points) in scalars {
        let steps: Vec<u64> =
            points.as_array().unwrap().iter().map(|point| point[0].as_u64().unwrap()).collect();
        assert!(steps.is_sorted_by(|a, b| a < b), "{tag}: {steps:?}");
        let wall_time = tag.ends_with("images_per_s") || tag.ends_with("seconds");
        if !wall_time {
            assert_eq!(*points, expected["scalars"][tag], "{tag}");
        }
    }
    for tag in ["step/loss", "step/lr", "loss", "validation/accuracy", "lambda/weights/l1", "penalty"] {
        assert!(scalars.contains_key(tag), "{tag} in {:?}", scalars.keys());
    }
    assert_eq!(scalars.len(), expected["scalars"].as_object().unwrap().len());
    assert_eq!(told["histograms"], expected["histograms"]);
    let histograms = told["histograms"].as_object().unwrap();
    let spread = &histograms["weights/fc.weight"];
    assert_eq!(spread.as_array().unwrap().len(), 3, "one per epoch");
    assert_eq!((&spread[2][1], &spread[2][4]), (&spread[2][3], &json!(30)), "every weight is in a bucket");
}

#[test]
fn pictures_of_a_run_are_in_tensorboard_and_in_its_report() {
    let home = Home::new();
    let config = home.config(
        "espcn.yaml",
        "
device: cpu
threads: 1
model: {name: espcn, args: {size: 14, scale: 2}}
task: {reconstruction: {degrade: {super_resolution: {scale: 2, input: small}}}}
data: {train: {shapes: {count: 60, size: 28}}, validation: {fraction: 0.2}, batch_size: 16, normalize: none}
optimizer: {adam: {lr: 1.0e-3}}
train: {epochs: 2, pictures: 2, tensorboard: true}
",
    );
    let folder = home.at("run");
    succeeds(&["train", &config, "--quiet", "--output", &folder]);
    let told = tensorboard(&folder);
    for series in ["pictures/1", "pictures/2"] {
        let steps: Vec<u64> =
            (told["images"][series].as_array().unwrap().iter()).map(|one| one[0].as_u64().unwrap()).collect();
        assert_eq!(steps, [4, 8], "{told}");
        assert!(told["images"][series][0][1].as_u64().unwrap() > 2 * 28);
    }
    succeeds(&["report", &folder, "--output", &home.at("report.html")]);
    let report = fs::read_to_string(home.at("report.html")).unwrap();
    // Two of each epoch, and the first filters.
    assert_eq!(report.matches("src=\"data:image/png;base64,").count(), 5);
    let newest = report.find("<figcaption>epoch-0002-1<").unwrap();
    assert!(newest < report.find("<figcaption>epoch-0001-1<").unwrap(), "the newest first");
}
