//! What a trained network shows of itself, against PyTorch: maps of Grad-CAM, embeddings, answers averaged over
//! views; the filters and the predictions of a run in its report.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{python, read_json, run, succeeds, write_config};

/// A run on drawn shapes, its network the same in PyTorch, and three pictures.
fn trained(folder: &Path) -> PathBuf {
    let config = write_config(
        folder,
        "device: cpu\nthreads: 1\nseed: 2\nmodel:\n  input: [1, 24, 24]\n  layers:\n    \
         conv1: {conv2d: {out_channels: 5, kernel_size: 3, padding: 1}}\n    bn1: batch_norm2d\n    _relu1: relu\n    \
         _pool1: {max_pool2d: {kernel_size: 2}}\n    conv2: {conv2d: {out_channels: 7, kernel_size: 3, padding: 1}}\n    \
         _relu2: relu\n    _pool2: {adaptive_avg_pool2d: {output_size: 1}}\n    _flatten: flatten\n    \
         fc: {linear: {out_features: 10}}\ntask: classification\ndata:\n  train: {shapes: {count: 200, size: 24}}\n  \
         test: {shapes: {count: 60, size: 24}}\n  batch_size: 20\noptimizer: {sgd: {lr: 0.1, momentum: 0.9}}\n\
         train: {steps: 25}\n",
    );
    let out = folder.join("run");
    succeeds(&["train", &config, "--output", out.to_str().unwrap(), "--quiet"]);
    python(&format!(
        "import numpy as np\nfrom PIL import Image\nrng = np.random.default_rng(0)\n\
         for i in range(3):\n    x = rng.integers(0, 80, (24, 24))\n    x[4 + i:14 + 2 * i, 6:18 - i] += 150\n    \
         Image.fromarray(x.astype(np.uint8)).save(f'{}/{{i}}.png')",
        folder.display()
    ));
    out
}

/// The network and the pictures `x` in PyTorch.
fn twin(folder: &Path) -> String {
    format!(
        "import json, numpy as np, torch, yaml\nimport torch.nn as nn\nimport torch.nn.functional as F\nfrom PIL import Image\n\
         from safetensors.torch import load_file\nclass Net(nn.Module):\n    def __init__(s):\n        super().__init__()\n        \
         s.conv1, s.bn1, s.conv2, s.fc = nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Conv2d(5, 7, 3, padding=1), nn.Linear(7, 10)\n    \
         def forward(s, x):\n        s.a = F.max_pool2d(F.relu(s.bn1(s.conv1(x))), 2)\n        s.b = s.conv2(s.a)\n        \
         if s.b.requires_grad: s.b.retain_grad()\n        s.c = F.relu(s.b).mean((2, 3))\n        return s.fc(s.c)\n\
         net = Net()\nnet.load_state_dict(load_file('{0}/run/checkpoints/last/model.safetensors'))\nnet.eval()\n\
         norm = yaml.safe_load(open('{0}/run/config.yaml'))['data']['normalize']\n\
         mean, std = (norm['mean'][0], norm['std'][0]) if isinstance(norm, dict) else (0.0, 1.0)\n\
         x = torch.stack([torch.tensor(np.array(Image.open(f'{0}/{{i}}.png')), dtype=torch.float32)[None] / 255 for i in range(3)])\n\
         x = (x - mean) / std\n",
        folder.display()
    )
}

#[test]
fn maps_of_gradcam_and_embeddings_are_pytorchs() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let out = trained(folder);
    let run_folder = out.to_str().unwrap();
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let pictures = [at("0.png"), at("1.png"), at("2.png")];
    let pictures: Vec<&str> = pictures.iter().map(String::as_str).collect();
    let (sheet, maps, embedded) = (at("sheet.png"), at("maps.npy"), at("e.npy"));
    let told = succeeds(
        &[&["gradcam", run_folder], pictures.as_slice(), &["--layer", "conv2", "-o", &sheet, "--npy", &maps]]
            .concat(),
    );
    assert_eq!(told.lines().count(), 3, "{told}");
    let drawn = image::open(&sheet).unwrap();
    assert!(drawn.width() > 2 * 168 && drawn.height() > 3 * 168);
    let predict = ["predict", run_folder];
    succeeds(
        &[&predict, pictures.as_slice(), &["--embed", "_flatten", "-o", &embedded, "--format", "json"]]
            .concat(),
    );
    let class = succeeds(
        &[
            &["gradcam", run_folder],
            &pictures[..1],
            &["--layer", "conv2", "--class", "3", "-o", &at("s2.png"), "--npy", &at("m2.npy")],
        ]
        .concat(),
    );
    let state = read_json(out.join("checkpoints/last/state.json"));
    let classes: Vec<&str> =
        state["classes"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(class.contains(&format!("  {}  ", classes[3])), "{class}");
    let answers = succeeds(
        &[&predict, pictures.as_slice(), &["--tta", "hflip", "--format", "json", "--top", "10"]].concat(),
    );
    let folder_text = folder.display();
    let script = format!(
        "{}\ndef cam(x, k=None):\n    y = net(x)\n    k = y.argmax().item() if k is None else k\n    net.zero_grad()\n    \
         y[0, k].backward()\n    return F.relu((net.b.grad.mean((2, 3), keepdim=True) * net.b).sum(1))[0].detach().numpy()\n\
         mine = np.load('{folder_text}/maps.npy')\n\
         for i in range(3):\n    want = cam(x[i:i+1])\n    assert np.abs(want - mine[i]).max() < 1e-5 * max(1, want.max()), i\n\
         want = cam(x[:1], 3)\nassert np.abs(want - np.load('{folder_text}/m2.npy')[0]).max() < 1e-5\n\
         net(x)\nassert np.abs(net.c.detach().numpy() - np.load('{folder_text}/e.npy')).max() < 1e-5\n\
         p = (net(x).softmax(1) + net(x.flip(3)).softmax(1)) / 2\nprint(json.dumps(p.tolist()))",
        twin(folder)
    );
    let wanted: Vec<Vec<f64>> = serde_json::from_str(&python(&script)).unwrap();
    for (line, wanted) in answers.lines().zip(wanted) {
        let answer: Value = serde_json::from_str(line).unwrap();
        for class in answer["classes"].as_array().unwrap() {
            let number = classes.iter().position(|name| class["class"] == **name).unwrap();
            let p = class["probability"].as_f64().unwrap();
            assert!((p - wanted[number]).abs() < 1e-6, "{p} {wanted:?}");
        }
    }
    // The last layer with an image is found, names are mended, files are kept.
    let (code, _, told) = run(&[&["gradcam", run_folder], &pictures[..1], &["-o", &at("s3.png")]].concat());
    assert!(code == 0 && told.contains("layer _relu2"), "{told}");
    for (more, why) in [
        (vec!["--layer", "conv3", "-o", "x.png"], "no layer `conv3`; did you mean `conv"),
        (vec!["--layer", "fc", "-o", "x.png"], "a map needs an image"),
        (vec!["--class", "cat", "-o", "x.png"], "there is no class `cat`"),
        (vec!["-o", sheet.as_str()], "--force"),
    ] {
        let (code, _, told) = run(&[&["gradcam", run_folder], &pictures[..1], more.as_slice()].concat());
        assert!(code == 2 && told.contains(why), "{why}: {told}");
    }
    let (plain, views) =
        (succeeds(&["eval", run_folder, "--json"]), succeeds(&["eval", run_folder, "--json", "--tta", "d4"]));
    assert_ne!(plain, views);
    let page = at("r.html");
    succeeds(&["report", run_folder, "-o", &page]);
    assert!(std::fs::read_to_string(page).unwrap().contains("<figcaption>filters</figcaption>"));
    assert!(out.join("pictures/filters.png").exists());
}

#[test]
fn a_regression_leaves_what_it_predicted_and_its_report_plots_it() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let config = write_config(
        folder,
        "device: cpu\nthreads: 1\nmodel: {name: linear, args: {features: 1, outputs: 1}}\ntask: regression\ndata:\n  \
         train: {line: {slope: 3, intercept: 5, noise: 0.1, low: 0, high: 2, count: 60}}\n  \
         test: {line: {slope: 3, intercept: 5, noise: 0.1, low: 0, high: 2, count: 25}}\n\
         optimizer: {sgd: {lr: 0.1}}\ntrain: {epochs: 30}\n",
    );
    let out = folder.join("run");
    succeeds(&["train", &config, "--output", out.to_str().unwrap(), "--quiet"]);
    let mut table = csv::Reader::from_path(out.join("predictions.csv")).unwrap();
    assert_eq!(table.headers().unwrap(), vec!["y0", "predicted0"]);
    let rows: Vec<[f64; 2]> =
        table.records().map(|row| row.unwrap().deserialize::<[f64; 2]>(None).unwrap()).collect();
    assert_eq!(rows.len(), 25);
    let mse = rows.iter().map(|[y, found]| (y - found).powi(2)).sum::<f64>() / 25.0;
    let scores: Value = serde_json::from_str(&succeeds(&["eval", out.to_str().unwrap(), "--json"])).unwrap();
    let told = scores["scores"]["mse"].as_f64().unwrap();
    assert!((mse - told).abs() < 1e-6 * told.max(1.0), "{mse} {told}");
    assert!(out.join("plots/predicted.png").exists());
    let page = folder.join("r.html");
    succeeds(&["report", out.to_str().unwrap(), "-o", page.to_str().unwrap()]);
    assert!(std::fs::read_to_string(page).unwrap().contains("Predicted against true"));
}
