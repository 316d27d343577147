//! scripts/gpu-check on the pretend device, so that the check itself is known to work where there is a GPU.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::library;
use crate::common::{outcome, python_path};

/// `gpu-check` with these arguments: the verdict and the figures of each item.
fn checked(script: &Path, args: &[&str], home: &Path) -> BTreeMap<String, (String, Value)> {
    let mut command = Command::new(python_path());
    command.arg(script).args(args).arg("--output").arg(home).env_remove("TIKHONOV_BINARY");
    let (code, stdout, stderr) = outcome(command.output().unwrap());
    assert_eq!(code, 0, "{stdout}\n{stderr}");
    let report: Value = serde_json::from_slice(&fs::read(home.join("gpu-check.json")).unwrap()).unwrap();
    let entry = |item: &Value| {
        let text = |key: &str| item[key].as_str().unwrap().to_owned();
        assert!(stdout.contains(&format!("{} {} ", text("verdict"), text("item"))), "{stdout}");
        (text("item"), (text("verdict"), item["figures"].clone()))
    };
    report["results"].as_array().unwrap().iter().map(entry).collect()
}

#[test]
fn the_check_of_a_gpu_passes_on_the_pretend_one_item_by_item() {
    let Some(library) = library("the_check_of_a_gpu_passes_on_the_pretend_one_item_by_item") else { return };
    let home = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu-check");
    for class in ["a", "b"] {
        let folder = home.path().join("data/jpeg").join(class);
        fs::create_dir_all(&folder).unwrap();
        for at in 0..8u32 {
            let pixel = |x: u32, y: u32| image::Rgb([(x * 5 + at) as u8, (y * 3) as u8, 90]);
            image::RgbImage::from_fn(48, 40, pixel).save(folder.join(format!("{at}.jpg"))).unwrap();
        }
    }
    let (data, python) = (home.path().join("data"), python_path());
    let args = [
        "--tiny",
        "--seconds",
        "400",
        "--binary",
        env!("CARGO_BIN_EXE_tikhonov"),
        "--pretend",
        library.to_str().unwrap(),
        "--data",
        data.to_str().unwrap(),
        "--python",
        python.to_str().unwrap(),
    ];
    let results = checked(&script, &args, home.path());
    assert!(results.len() > 12, "{results:?}");
    for (name, (verdict, figures)) in &results {
        let expected = if ["idle", "hidden", "dncnn"].contains(&name.as_str()) { "SKIP" } else { "PASS" };
        assert_eq!(verdict, expected, "{name}: {figures}");
    }
    assert!(results["rates"].1["steps_per_s"].get("jpeg-resnet18-bf16").is_some(), "{:?}", results["rates"]);
    let rate = &results["rates"].1["steps_per_s"]["small-cnn"]["torch, eager"];
    assert!(rate.as_f64().is_some_and(|rate| rate > 0.0), "{rate}");
    assert!(results["parity"].1["compared"].as_u64() > Some(25), "{:?}", results["parity"]);
}

#[test]
fn a_packed_kit_is_small_and_runs_by_itself() {
    let Some(library) = library("a_packed_kit_is_small_and_runs_by_itself") else { return };
    let home = tempfile::tempdir().unwrap();
    let kit = home.path().join("kit");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu-check");
    let mut command = Command::new(python_path());
    // A binary that was built without optimisation is twice as large.
    command
        .arg(&script)
        .args(["--binary", env!("CARGO_BIN_EXE_tikhonov"), "--most", "200", "--pack"])
        .arg(&kit);
    // No data: what the kit holds of it depends on what is there.
    let (code, stdout, stderr) = outcome(command.env("TIKHONOV_DATA", home.path()).output().unwrap());
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(kit.join("gpu_syncs.so").exists() && stdout.contains(" MB"), "{stdout}");
    let args =
        ["--tiny", "--only", "doctor,smoke", "--python", "none", "--pretend", library.to_str().unwrap()];
    let results = checked(&kit.join("gpu-check"), &args, home.path());
    assert!(results.len() == 2 && results.values().all(|(verdict, _)| verdict == "PASS"), "{results:?}");
}
