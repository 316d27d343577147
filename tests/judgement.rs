//! What can be trusted of a run: `calibrate`, `compare`, and what exports say of both.

use std::path::Path;

use serde_json::Value;

use crate::common::{has_modules, python, read_json, run, succeeds, write_config};
use crate::scores::labelled;

/// Three overlapping classes, learnt by heart from few samples; `more` are keys of the config.
fn overconfident(folder: &Path, output: &str, more: &str) -> String {
    let at = folder.display();
    python(&format!(
        "import numpy as np\nr = np.random.default_rng(3)\ny = r.integers(0, 3, 700)\n\
         x = (r.normal(size=(700, 12)) + np.eye(12)[y] * 1.5).astype('float32')\n\
         for part, a, b in [('train', 0, 60), ('validation', 60, 360), ('test', 360, 700)]:\n    \
         np.savez(f'{at}/{{part}}.npz', x=x[a:b], y=y[a:b])"
    ));
    let part =
        |name: &str| format!("{{npy: {{file: {at}/{name}.npz, xs: x, ys: y, classes: [one, two, three]}}}}");
    let text = format!(
        "device: cpu\nthreads: 1\nmodel: {{name: linear, args: {{features: 12, outputs: 3}}}}\ntask: classification\n\
         data: {{train: {}, validation: {}, test: {}, batch_size: 20, normalize: none}}\noptimizer: {{adam: {{lr: 0.1}}}}\n\
         train: {{epochs: 20}}\noutput: {at}/{output}\n{more}\n",
        part("train"),
        part("validation"),
        part("test")
    );
    succeeds(&["train", &write_config(folder, &text), "--quiet"]);
    format!("{at}/{output}")
}

/// Logits of a set by the weights that `predict` takes, in Python.
const LOGITS: &str = "
import numpy as np, torch, json
from safetensors.torch import load_file
def logits(run, part, folder):
    w = load_file(f'{run}/checkpoints/best/model.safetensors'); d = np.load(f'{folder}/{part}.npz')
    x = torch.tensor(d['x']).double()
    c = json.load(open(f'{run}/checkpoints/best/state.json'))['config']['data']['normalize']
    if isinstance(c, dict): x = (x - torch.tensor(c['mean'])) / torch.tensor(c['std'])
    weight, bias = [t.double() for k, t in sorted(w.items(), key=lambda i: -i[1].dim())]
    return x @ weight.T + bias, torch.tensor(d['y'])
";

#[test]
fn the_temperature_is_that_of_scipy_and_stays_with_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let run_folder = overconfident(folder.path(), "run", "");
    let at = folder.path().display();
    let told = succeeds(&["calibrate", &run_folder]);
    assert!(told.contains("temperature") && told.contains("by 300 samples of the validation set"), "{told}");
    let kept = read_json(format!("{run_folder}/calibration.json"));
    let ours = kept["temperature"].as_f64().unwrap();
    let wanted = python(&format!(
        "{LOGITS}\nfrom scipy.optimize import minimize_scalar\nz, y = logits('{run_folder}', 'validation', '{at}')\n\
         nll = lambda t: float(torch.nn.functional.cross_entropy(z / t, y))\n\
         t = minimize_scalar(nll, bounds=(0.01, 100), method='bounded', options={{'xatol': 1e-10}}).x\n\
         log = torch.zeros([], dtype=torch.float64, requires_grad=True)\n\
         best = torch.optim.LBFGS([log], lr=0.5, max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)\n\
         def closure():\n    best.zero_grad(); loss = torch.nn.functional.cross_entropy(z / log.exp(), y); loss.backward(); return loss\n\
         best.step(closure)\nprint(t, float(log.exp()), nll(1), nll(t))"
    ));
    let wanted: Vec<f64> = wanted.split_whitespace().map(|number| number.parse().unwrap()).collect();
    // The network computes in float32.
    assert!(
        (ours / wanted[0] - 1.0).abs() < 1e-5 && (ours / wanted[1] - 1.0).abs() < 1e-5,
        "{ours} {wanted:?}"
    );
    assert!(ours > 1.05, "an overconfident network is cooled: {ours}");
    assert!((kept["before"]["loss"].as_f64().unwrap() - wanted[2]).abs() < 1e-5);
    assert!((kept["after"]["loss"].as_f64().unwrap() - wanted[3]).abs() < 1e-5);
    assert!(kept["after"]["ece"].as_f64() < kept["before"]["ece"].as_f64(), "{kept}");
    assert!(std::fs::read(format!("{run_folder}/plots/reliability.png")).unwrap().starts_with(b"\x89PNG"));
    // Eval applies it: the same classes, at other probabilities.
    let eval = |run: &str| -> Value {
        let picture = format!("{at}/reliability.png");
        let args = ["eval", run, "--split", "validation", "--json", "--reliability", &picture];
        serde_json::from_str(&succeeds(&args)).unwrap()
    };
    let calibrated = eval(&run_folder);
    assert!((calibrated["scores"]["loss"].as_f64().unwrap() - wanted[3]).abs() < 1e-5);
    assert_eq!(calibrated["temperature"].as_f64(), Some(ours));
    // Other weights have none, and are not given this one.
    let (code, stdout, stderr) = run(&["eval", &run_folder, "--checkpoint", "last", "--split", "validation"]);
    assert!(code == 0 && stderr.contains("is of other weights"), "{stdout}{stderr}");
    std::fs::write(format!("{run_folder}/calibration.json"), "{\"temperature\": 2").unwrap();
    let (code, _, stderr) = run(&["eval", &run_folder]);
    assert!(code == 4 && stderr.contains("is damaged"), "{stderr}");
    let (code, _, stderr) = run(&["calibrate", &format!("{at}/config-under-test.yaml")]);
    assert!(code == 2 && stderr.contains("is no run folder"), "{stderr}");
}

#[test]
fn exports_say_the_temperature_and_apply_it_where_they_answer_probabilities() {
    let folder = tempfile::tempdir().unwrap();
    let run_folder = overconfident(folder.path(), "run", "");
    let at = folder.path().display();
    succeeds(&["calibrate", &run_folder]);
    let temperature = read_json(format!("{run_folder}/calibration.json"))["temperature"].as_f64().unwrap();
    let export = |to: &str, name: &str, more: &[&str]| {
        let file = format!("{at}/{name}");
        let mut args = vec!["export", &run_folder, "--to", to, "-o", &file];
        args.extend(more);
        succeeds(&args)
    };
    let told = export("torchscript", "plain.pt", &[]);
    assert!(told.contains(&format!("probabilities are softmax(x / {temperature:?})")), "{told}");
    export("torchscript", "softmax.pt", &["--softmax"]);
    export("pt2", "plain.pt2", &[]);
    export("pt2", "softmax.pt2", &["--softmax"]);
    export("safetensors", "plain.safetensors", &[]);
    export("state-dict", "plain.sd.pt", &[]);
    export("python", "plain.py", &[]);
    python(&format!(
        "{LOGITS}\nfrom safetensors import safe_open\nT = {temperature}\n\
         z, y = logits('{run_folder}', 'test', '{at}'); x = torch.tensor(np.load('{at}/test.npz')['x'])\n\
         wanted = (z / T).softmax(1)\n\
         plain, soft = torch.jit.load('{at}/plain.pt'), torch.jit.load('{at}/softmax.pt')\n\
         assert plain.temperature == [T] and not hasattr(soft, 'temperature')\n\
         files = {{'metadata.json': ''}}; torch.jit.load('{at}/plain.pt', _extra_files=files)\n\
         assert json.loads(files['metadata.json'])['temperature'] == T\n\
         assert (soft(x).double() - wanted).abs().max() < 1e-5\n\
         assert ((plain(x).double() / T).softmax(1) - wanted).abs().max() < 1e-5\n\
         program = torch.export.load('{at}/softmax.pt2').module()\nassert (program(x).double() - wanted).abs().max() < 1e-5\n\
         extra = {{'metadata.json': ''}}; torch.export.load('{at}/plain.pt2', extra_files=extra)\n\
         assert json.loads(extra['metadata.json'])['temperature'] == T\n\
         with safe_open('{at}/plain.safetensors', 'pt') as f: assert json.loads(f.metadata()['temperature']) == T\n\
         assert 'TEMPERATURE = ' + repr(T) in open('{at}/plain.py').read()\nprint('good')",
        temperature = temperature,
    ));
    if has_modules("the temperature of ONNX files", &["onnxruntime"]) {
        export("onnx", "plain.onnx", &[]);
        export("onnx", "softmax.onnx", &["--softmax"]);
        python(&format!(
            "{LOGITS}\nimport onnxruntime as ort\nT = {temperature}\nz, y = logits('{run_folder}', 'test', '{at}')\n\
             x = np.load('{at}/test.npz')['x']\nplain, soft = [ort.InferenceSession(f'{at}/{{n}}.onnx') for n in ['plain', 'softmax']]\n\
             assert float(plain.get_modelmeta().custom_metadata_map['temperature']) == T\n\
             assert 'temperature' not in soft.get_modelmeta().custom_metadata_map\n\
             got = soft.run(None, {{soft.get_inputs()[0].name: x}})[0]\nassert abs(got - (z / T).softmax(1).numpy()).max() < 1e-5"
        ));
    }
}

#[test]
fn thresholds_and_the_temperature_of_several_labels_find_the_same_classes_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display().to_string();
    succeeds(&["train", &write_config(folder.path(), &labelled(folder.path(), "")), "--quiet"]);
    let run_folder = format!("{at}/run");
    let eval = || -> Value { serde_json::from_str(&succeeds(&["eval", &run_folder, "--json"])).unwrap() };
    let before = eval();
    succeeds(&["calibrate", &run_folder]);
    let after = eval();
    for score in ["macro_f1", "micro_f1", "subset_accuracy", "average_precision"] {
        assert_eq!(before["scores"][score], after["scores"][score], "{score}");
    }
    assert_ne!(before["scores"]["loss"], after["scores"]["loss"]);
    let thresholds: Vec<f64> =
        (0..3).map(|class| after["report"]["per_class"][class]["threshold"].as_f64().unwrap()).collect();
    let export = |to: &str, name: &str, more: &[&str]| {
        let file = format!("{at}/{name}");
        let mut args = vec!["export", &run_folder, "--to", to, "-o", &file];
        args.extend(more);
        run(&args)
    };
    let (code, told, stderr) = export("torchscript", "plain.pt", &[]);
    assert!(code == 0 && told.contains("probabilities are sigmoid(x / "), "{told}{stderr}");
    for (to, name) in [("torchscript", "sigmoid.pt"), ("pt2", "sigmoid.pt2"), ("onnx", "sigmoid.onnx")] {
        let (code, _, stderr) = export(to, name, &["--sigmoid"]);
        assert_eq!(code, 0, "{to}: {stderr}");
    }
    let (code, _, stderr) = export("torchscript", "wrong.pt", &["--softmax"]);
    assert!(code == 2 && stderr.contains("say --sigmoid"), "{stderr}");
    let macro_f1 = python(&format!(
        "{LOGITS}\nfrom sklearn.metrics import f1_score\nz, y = logits('{run_folder}', 'test', '{at}')\n\
         d = np.load('{at}/test.npz'); c = json.load(open('{run_folder}/checkpoints/best/state.json'))['config']['data']['normalize']\n\
         x = torch.tensor(((d['x'] - np.array(c['mean'])) / np.array(c['std'])).astype('float32'))\n\
         net = torch.jit.load('{at}/sigmoid.pt')\nassert net.thresholds == {thresholds:?}, net.thresholds\n\
         assert net.classes == ['cat', 'dog', 'emu'] and not hasattr(net, 'temperature')\n\
         p = net(x); plain = torch.jit.load('{at}/plain.pt')\n\
         assert (p - torch.sigmoid(plain(x) / plain.temperature[0])).abs().max() < 1e-6\n\
         assert (p - torch.export.load('{at}/sigmoid.pt2').module()(x)).abs().max() < 1e-6\n\
         print(float(f1_score(d['y'], (p >= torch.tensor(net.thresholds)).numpy(), average='macro')))"
    ));
    let ours = after["scores"]["macro_f1"].as_f64().unwrap();
    assert!((macro_f1.trim().parse::<f64>().unwrap() - ours).abs() < 1e-9, "{macro_f1} {ours}");
}

#[test]
fn compare_says_in_a_sentence_whether_a_run_is_better() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (
        overconfident(folder.path(), "good", "penalty: {l2: 0.05}"),
        overconfident(folder.path(), "bad", "balance: {loss: [1, 1, 0]}"),
    );
    let told = succeeds(&["compare", &bad, &good]);
    let first = told.lines().next().unwrap();
    assert!(first.starts_with(&format!("B ({good}) is better than A: accuracy 0.")), "{told}");
    assert!(
        first.contains("95 % interval +0.") && first.ends_with("on 340 samples of the test set."),
        "{first}"
    );
    assert!(told.contains("McNemar's test: only A has ") && told.contains("\n  matthews_corrcoef"), "{told}");
    // A score of which less is better; the same sides.
    let told = succeeds(&["compare", &good, &bad, "--metric", "loss"]);
    assert!(told.starts_with(&format!("A ({good}) is better than B: loss 0.")), "{told}");
    let told = succeeds(&["compare", &good, &good]);
    assert!(told.starts_with("No difference is shown: accuracy ") && told.contains("p = 1.0000"), "{told}");
    // As numpy and scipy have it.
    let json: Value = serde_json::from_str(&succeeds(&["compare", &bad, &good, "--json"])).unwrap();
    let at = folder.path().display();
    let wanted = python(&format!(
        "{LOGITS}\nfrom scipy.stats import binomtest\n\
         (a, y), (b, _) = [logits(f'{{r}}', 'test', '{at}') for r in ['{bad}', '{good}']]\n\
         a, b = (a.argmax(1) == y).numpy(), (b.argmax(1) == y).numpy()\n\
         n, m = int((a & ~b).sum()), int((b & ~a).sum())\nr = np.random.default_rng(0)\n\
         d = [float((b[i] * 1. - a[i]).mean()) for i in r.integers(0, len(a), (4000, len(a)))]\n\
         print(n, m, binomtest(n, n + m).pvalue, *np.quantile(d, [.025, .975]))"
    ));
    let wanted: Vec<f64> = wanted.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let test = &json["mcnemar"];
    assert_eq!((test["only_a"].as_f64(), test["only_b"].as_f64()), (Some(wanted[0]), Some(wanted[1])));
    assert!((test["p"].as_f64().unwrap() - wanted[2]).abs() < 1e-12);
    let row = json["scores"].as_array().unwrap().iter().find(|row| row["name"] == "accuracy").unwrap();
    for (side, wanted) in [("low", wanted[3]), ("high", wanted[4])] {
        assert!((row["interval"][side].as_f64().unwrap() - wanted).abs() < 0.012, "{row} {wanted}");
    }
    assert_eq!(succeeds(&["compare", &bad, &good, "--json"]), json.to_string() + "\n");
    // What is not the same is refused.
    let labels = tempfile::tempdir().unwrap();
    succeeds(&["train", &write_config(labels.path(), &labelled(labels.path(), "")), "--quiet"]);
    let other = format!("{}/run", labels.path().display());
    for (args, parts) in [
        (vec!["compare", &good, &other], "cannot be compared: the one is classification"),
        (vec!["compare", &good, &bad, "--metric", "acuracy"], "did you mean `accuracy`"),
    ] {
        let (code, _, stderr) = run(&args);
        assert!(code == 2 && stderr.contains(parts), "{stderr}");
    }
    assert!(succeeds(&["compare", &other, &other]).contains("only A has all labels of 0 samples right"));
}
