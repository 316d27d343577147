//! What the model language builds: conditions, lists, variants, blocks of other files, the order of names.

use std::fs;

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tikhonov::nn::model::{Model, ModelSpec};

use super::{inline, model};

fn read(spec: Value) -> Result<Model, String> {
    let spec: ModelSpec = serde_json::from_value(spec).map_err(|error| error.to_string())?;
    Model::from_spec(&spec).map_err(|error| format!("{error:#}"))
}

fn names(model: &Model) -> Vec<&str> {
    model.params().iter().map(|param| param.name.as_str()).collect()
}

const FAMILY: &str = "
args: {width: 4, depths: ~, norm: false, head: conv2d}
published: \"{variant}.pth\"
variants:
  mini: {depths: [1, 2]}
  maxi: {depths: [2, 1], norm: true, width: 8}
blocks:
  unit:
    args: {out: ~, kernel: 1, norm: true}
    layers:
      - conv2d: {out_channels: $out, kernel_size: $kernel, padding: \"${(kernel - 1) // 2}\"}
      - if: {test: $norm, layers: [batch_norm2d], else: [tanh]}
      - relu
  add:
    args: {out: ~, down: false}
    layers:
      _add:
        residual:
          layers: {$unit: {out: $out, norm: $norm}}
          shortcut:
            if: {test: $down, layers: {proj: {conv2d: {out_channels: $out, kernel_size: 1}}}}
input: [3, 8, 8]
layers:
  features:
    - repeat:
        times: \"${len(depths)}\"
        layers:
          - unit: {out: \"${width * (i + 1)}\", kernel: \"${3 if i == 0 else 1}\", norm: $norm}
          - repeat:
              times: \"${depths[i] - 1}\"
              index: j
              layers: [add: {out: \"${width * (i + 1)}\", down: \"${i > 0 and j == 0}\"}]
  head: {$head: {out_channels: 2, kernel_size: 1}}
";

#[test]
fn a_variant_of_a_family_is_the_network_that_is_written_out_for_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("family.yaml");
    fs::write(&file, FAMILY).expect("the file is written");
    let of = |variant: &str, args: Value| read(json!({"file": file, "variant": variant, "args": args}));
    let unit = |out: i64, kernel: i64, norm: &str| {
        let padding = (kernel - 1) / 2;
        format!("[conv2d: {{out_channels: {out}, kernel_size: {kernel}, padding: {padding}}}, {norm}, relu]")
    };
    let mini = format!(
        "{{features: [{}, {}, {{_add: {{residual: {{layers: {}, shortcut: {{proj: {{conv2d: {{out_channels: 8, \
         kernel_size: 1}}}}}}}}}}}}], head: {{conv2d: {{out_channels: 2, kernel_size: 1}}}}}}",
        unit(4, 3, "tanh"),
        unit(8, 1, "tanh"),
        unit(8, 1, "tanh"),
    );
    let (ours, written) = (of("mini", json!({})).expect("it is read"), inline(&[3, 8, 8], &mini));
    assert_eq!(names(&ours), names(&written));
    assert_eq!(ours.structure().expect("text"), written.structure().expect("text"));
    let maxi = of("maxi", json!({"width": 2})).expect("it is read");
    let second = "features.1.0.weight";
    assert!(names(&maxi).contains(&second) && maxi.structure().expect("text").contains("batch_norm"));
    assert_eq!(maxi.params().iter().find(|param| param.name == second).expect("there").shape, [2, 2, 1, 1]);
    // What a run keeps needs neither the file nor the variant.
    let spec: ModelSpec = serde_json::from_value(json!({"file": file, "variant": "maxi"})).expect("a spec");
    let kept = spec.inlined().expect("it is resolved");
    fs::remove_file(&file).expect("it is removed");
    let again: ModelSpec = serde_json::from_value(json!(kept)).expect("a spec");
    let again = Model::from_spec(&again).expect("it is read");
    assert_eq!(again.parameter_count(), of_text("maxi").parameter_count());
}

fn of_text(variant: &str) -> Model {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("family.yaml");
    fs::write(&file, FAMILY).expect("the file is written");
    model(json!({"file": file, "variant": variant}))
}

#[test]
fn wrong_variants_conditions_and_blocks_of_others_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("family.yaml");
    let complaint = |text: &str, spec: Value| {
        fs::write(&file, text).expect("the file is written");
        let mut spec = spec;
        spec["file"] = json!(file);
        read(spec).expect_err("it is refused")
    };
    for (spec, part) in [
        (json!({"variant": "mino"}), "unknown variant `mino`; did you mean `mini`?"),
        (json!({}), "is a family of networks: name one of its variants, mini, maxi, or give `depths`"),
        (json!({"variant": "mini", "args": {"width": "wide"}}), "expected a number, as the default 4 is"),
        (json!({"variant": "mini", "args": {"head": "conv3d"}}), "unknown layer `conv3d`"),
    ] {
        let message = complaint(FAMILY, spec);
        assert!(message.contains(part), "{message}");
    }
    let with = |rest: &str| format!("args: {{n: 2}}\ninput: [4, 2, 2]\n{rest}\n");
    for (rest, part) in [
        ("layers: [if: {test: $n, layers: [relu]}]", "layers.0.if.test: 2 is neither true nor false"),
        ("layers: [if: {test: \"${n == 3}\", layers: [relu]}]", "holds no layers"),
        ("layers: [if: {tst: true, layers: [relu]}]", "did you mean `test`?"),
        ("blocks_of: resnet99\nlayers: [relu]", "did you mean `resnet"),
        ("blocks_of: lenet\nlayers: [relu]", "`lenet` declares no blocks"),
        (
            "blocks_of: small-cnn\nblocks: {unit: {layers: [relu]}}\nlayers: [relu]",
            "`unit` is declared twice",
        ),
        ("blocks: {u: {layers: [relu]}}\nlayers: [residual: {layers: {$v: {}}}]", "unknown argument `$v`"),
        ("order: [featurs]\nlayers: {features: [prelu]}", "did you mean `features`?"),
        ("init: {\"featurs.*\": zeros}\nlayers: {features: [prelu]}", "matches no parameter"),
        ("init: {linear: {trunc_normal: {std: 0}}}\nlayers: [relu]", "a finite std above 0"),
        ("init: {linear: {uniform: {a: 1, b: 0}}}\nlayers: [relu]", "a not above b"),
    ] {
        let message = complaint(&with(rest), json!({}));
        assert!(message.contains(part), "{rest}: {message}");
    }
}

#[test]
fn blocks_of_another_file_are_found_beside_it_and_among_the_shipped() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("family.yaml"), FAMILY).expect("the file is written");
    let mine = "blocks_of: [small-cnn, family.yaml]\ninput: [3, 8, 8]\nlayers: [add: {out: 3}]\n";
    let file = folder.path().join("mine.yaml");
    fs::write(&file, mine).expect("the file is written");
    // Both declare `unit`.
    let message = read(json!({"file": file})).expect_err("it is refused");
    assert!(message.contains("the block `unit` is declared twice"), "{message}");
    // Its blocks use an argument of its own, unless it is declared here.
    fs::write(&file, mine.replace("small-cnn, ", "")).expect("the file is written");
    assert_eq!(names(&read(json!({"file": file})).expect("it is read")), ["0.0.weight", "0.0.bias"]);
    fs::write(&file, mine.replace("small-cnn, ", "") + "args: {norm: true}\n").expect("the file is written");
    assert_eq!(names(&read(json!({"file": file})).expect("it is read")).len(), 7);
}

#[test]
fn names_come_in_the_order_of_a_state_dict_and_weights_are_drawn_in_it() {
    // `a` goes on after `b`, and `scale` is the module's own.
    let layers = "{a: {x: {prelu: {}}}, b: {prelu: {}}, _rest: {a: {y: {prelu: {}}, _own: {prelu: {}}}}}";
    let net = inline(&[4, 2, 2], layers);
    assert_eq!(names(&net), ["a.weight", "a.x.weight", "a.y.weight", "b.weight"]);
    let spec = |order: Value| {
        json!({"input": [3], "order": order, "init": {"linear": {"normal": {"std": 1}}, "*.bias": "zeros"},
            "layers": {"a": {"linear": {"out_features": 20}}, "b": {"linear": {"out_features": 20}}}})
    };
    let drawn = |order: Value| {
        let net = model(spec(order));
        tch::manual_seed(5);
        net.build(Device::Cpu, Kind::Float).expect("it builds").state()
    };
    let (plain, turned) = (drawn(json!([])), drawn(json!(["b"])));
    assert_eq!(turned[0].0, "b.weight");
    assert!(plain[1].1.abs().max().double_value(&[]) == 0.0);
    // The default draws that come first are of equal number.
    let first = |state: &[(String, Tensor)]| state[0].1.flatten(0, -1).slice(0, 0, 8, 1);
    assert!(first(&plain).equal(&first(&turned)));
}
