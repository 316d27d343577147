//! What broken model files say: exit 2, the place, what was expected, the remedy.

use serde_json::json;
use tikhonov::nn::model::{Model, ModelSpec};

/// The error about a model file with this text, without the file's name.
fn complaint(text: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("net.yaml");
    std::fs::write(&file, text).expect("the file is written");
    let spec: ModelSpec = serde_json::from_value(json!(file.to_str().expect("text"))).expect("a spec");
    let error = Model::from_spec(&spec).expect_err(text);
    let message = format!("{error:#}");
    assert_eq!(tikhonov::util::exit_code::code(&error), 2, "{message}");
    message.strip_prefix(&format!("{}:", file.display())).unwrap_or(&message).to_string()
}

fn complains(text: &str, expected: &str) {
    let message = complaint(text);
    assert!(message.contains(expected), "expected: {expected}\n     got: {message}");
}

#[test]
fn a_misfit_names_the_layer_what_came_in_what_it_wants_and_the_remedy() {
    complains(
        "input: [3, 8, 8]\nlayers:\n  flatten: flatten\n  conv2: {conv2d: {out_channels: 4, kernel_size: 3}}\n",
        "4:3: layers.conv2: conv2d wants [C, H, W] but got [192] from `flatten`; move it before the `flatten`",
    );
    complains(
        "input: [3, 8, 8]\nlayers:\n  - linear: {out_features: 4}\n",
        "3:5: layers.0: linear wants [F] but got [3, 8, 8] from the input; put `flatten` before it, or say \
         `in_features: 8` for the last dimension alone",
    );
    complains(
        "input: [3, 8, 8]\nlayers:\n  - {conv2d: {out_channels: 4, kernel_size: 9}}\n",
        "layers.0.conv2d.kernel_size: 9x9 is larger than the padded input, 8x8",
    );
    complains(
        "input: [3, 8, 8]\nlayers:\n  - residual: {layers: [conv2d: {out_channels: 4, kernel_size: 3}]}\n",
        "layers.0: residual adds what its layers give, [4, 6, 6], to the input, [3, 8, 8]: they must be equal; \
         give it a `shortcut`",
    );
    complains(
        "input: [3, 8, 8]\nlayers:\n  - flatten\n  - upsample: {like: input}\n",
        "4:5: layers.1: upsample wants [C, H, W] but got [192] from `0`",
    );
    complains(
        "input: [4]\nlayers: [reshape: {shape: [1, 2, 2]}, upsample: {like: input}]\n",
        "layers.1.upsample.like: what comes into this list of layers, [4], is no image",
    );
    complains(
        "input: [3, 8, 8]\nlayers: [relu, upsample: {like: input, scale_factor: 2}]\n",
        "layers.1.upsample.like: cannot go with size or scale_factor",
    );
    complains(
        "input: [3, 8, 8]\nlayers:\n  - subtract: {layers: [adaptive_avg_pool2d: {output_size: 1}]}\n",
        "layers.0: subtract takes what its layers give, [3, 1, 1], from the input, [3, 8, 8]: they must be equal",
    );
    complains(
        "input: [3, 8, 8]\nlayers:\n  - multiply: {layers: [conv2d: {out_channels: 2, kernel_size: 1}], shortcut: [tanh]}\n",
        "layers.0: multiply takes what its layers give, [2, 8, 8], times the shortcut, [3, 8, 8]: each extent must \
         be equal or 1 on one side, as [C, 1, 1] is beside [C, H, W]",
    );
    complains(
        "input: [3, 8, 8]\nlayers:\n  - concat: [identity, max_pool2d: {kernel_size: 2}]\n",
        "its branches differ elsewhere: [3, 8, 8], [3, 4, 4]",
    );
}

#[test]
fn factors_orders_and_groups_that_do_not_fit_say_what_would() {
    let wrong = |layer: &str, expected: &str| {
        complains(&format!("input: [6, 8, 8]\nlayers: [{layer}]\n"), expected);
    };
    wrong("scale: {}", "scale.value: is missing: give the number, or the name of a learned `parameter`");
    wrong("scale: {value: 2, parameter: w}", "scale.value: cannot go with `parameter`");
    wrong("scale: {value: 2, shape: [6]}", "scale.shape: goes with `parameter` only");
    wrong(
        "scale: {parameter: w, shape: [6]}",
        "scale.shape: [6] does not broadcast to the samples, [6, 8, 8]",
    );
    wrong("scale: {parameter: w, shape: [2, 6, 1, 1]}", "[2, 6, 1, 1] does not broadcast");
    wrong("scale: {parameter: a.b}", "scale.parameter: `a.b` is no name");
    wrong("permute: {dims: [1, 2, 3]}", "permute.dims: [1, 2, 3] is no order of [0, 1, 2, 3]");
    wrong("permute: {dims: [1, 0, 2, 3]}", "permute.dims: [1, 0, 2, 3] is no order");
    wrong("channel_shuffle: {groups: 4}", "channel_shuffle.groups: 4 does not divide the 6 channels");
    wrong("stochastic_depth: {p: 1.5}", "stochastic_depth.p: 1.5 is out of range");
    wrong(
        "reflection_pad2d: {padding: 8}",
        "reflection_pad2d.padding: 8 is out of range for a 8x8 input: expected 0 to 7",
    );
    wrong("replication_pad2d: {padding: [0, -1, 0, 0]}", "-1 is out of range");
    wrong("zero_pad2d: {padding: [-4, -4, 0, 0]}", "zero_pad2d.padding: cuts off all of the 8x8 input");
    wrong("zero_pad2d: {padding: [1, 2]}", "expected an integer or [left, right, top, bottom]");
    wrong("drop_block2d: {p: 0.1, block_size: 4}", "drop_block2d.block_size: 4 is even for a 8x8 input");
    wrong("chunk: {chunks: 4, index: 3}", "chunk.index: 3 is out of range: 6 in 4 parts has 0 to 2");
    wrong(
        "upsample: {size: 4, antialias: true}",
        "upsample.antialias: goes with mode `bilinear` and `bicubic` only",
    );
    wrong(
        "adaptive_avg_pool2d: {output_size: 1}, instance_norm2d",
        "instance_norm2d wants more than one pixel",
    );
    wrong(
        "weight_norm: {module: {conv2d: {out_channels: 2, kernel_size: 1}}, dim: 4}",
        "weight_norm.dim: 4 is out of range: expected 0 to 3",
    );
    wrong(
        "weight_norm: {module: {conv2: {out_channels: 2, kernel_size: 1}}}",
        "weight_norm.module.conv2: unknown",
    );
    wrong(
        "spectral_norm: {module: {conv2d: {out_channels: 2, kernel_size: 9}}}",
        "9x9 is larger than the padded input, 8x8",
    );
    wrong(
        "weight_standardization: {module: {linear: {out_features: 2, in_features: 8}}}",
        "must be a `conv2d`",
    );
    wrong(
        "weight_standardization: {module: {conv2d: {out_channels: 6, kernel_size: 1, groups: 6}}}",
        "filters of one weight",
    );
    complains(
        "input: [6, 8, 8]\ninit: {conv2d: kaiming_normal}\nlayers:\n  a: {weight_norm: {module: {conv2d: {out_channels: 2, kernel_size: 1}}}}\n",
        "init.conv2d: does not reach the conv2d inside `a`",
    );
    wrong("layer_norm2d: {normalized_shape: 8}", "8 does not fit the input, which has 6");
    wrong(
        "linear: {in_features: 6, out_features: 2}",
        "linear.in_features: 6 does not fit the input, which has 8",
    );
    wrong("{_a: {scale: {parameter: w}}, _b: {scale: {parameter: w}}}", "two tensors are called `0.w`");
}

#[test]
fn a_wrong_key_or_layer_is_named_with_the_nearest_valid_one() {
    complains(
        "input: [3, 8, 8]\nlayers:\n  conv1:\n    conv2d: {out_channels: 4, kernel_sise: 3}\n",
        "4:31: layers.conv1.conv2d.kernel_sise: unknown key; did you mean `kernel_size`?",
    );
    complains(
        "input: [3, 8, 8]\nlayers:\n  conv1: {conv2: {out_channels: 4, kernel_size: 3}}\n",
        "layers.conv1.conv2: unknown layer `conv2`; did you mean `conv2d`?",
    );
    complains("input: [3]\nlayers: [rellu]\n", "2:10: layers.0: unknown layer `rellu`; did you mean `relu`?");
    complains(
        "input: [3]\nlayers: {linear: {out_features: 4}}\n",
        "layers.linear: `linear` is a layer that wants a name: write NAME: {linear: {…}}",
    );
    complains("input: [3]\nlayer: [relu]\n", "layer: unknown key; did you mean `layers`?");
    complains("layers: [relu]\n", "the key `input` is missing");
    complains(
        "input: [3, 8, 8]\nlayers: [conv2d: {out_channels: 4}]\n",
        "layers.0.conv2d: the key `kernel_size` is missing",
    );
    complains("input: [3, 8, 8]\nlayers: [relu: {slope: 1}]\n", "layers.0.relu.slope: unknown key");
    complains(
        "input: [3, 8, 8]\nlayers: [upsample: {size: 4, mode: bilinea}]\n",
        "layers.0.upsample.mode: unknown choice `bilinea`; did you mean `bilinear`?",
    );
    complains(
        "input: [3, 8, 8]\ninit: {conv2: zeros}\nlayers: [relu]\n",
        "init.conv2: unknown key; did you mean `conv2d`?",
    );
    complains(
        "input: [3, 8, 8]\ninit: {conv2d: kaiming_norml}\nlayers: [relu]\n",
        "init.conv2d: unknown choice `kaiming_norml`; did you mean `kaiming_normal`?",
    );
}

#[test]
fn arguments_out_of_range_are_refused_before_anything_runs() {
    for (layer, expected) in [
        ("conv2d: {out_channels: 0, kernel_size: 3}", "out_channels: 0 is out of range"),
        ("conv2d: {out_channels: 4, kernel_size: 3, stride: 0}", "stride: 0 is out of range"),
        (
            "conv2d: {out_channels: 4, kernel_size: 3, groups: 2}",
            "groups: 2 does not divide the 3 input channels",
        ),
        (
            "conv2d: {out_channels: 4, kernel_size: 3, groups: 3}",
            "groups: 3 does not divide the 4 output channels",
        ),
        (
            "conv2d: {out_channels: 4, kernel_size: [3]}",
            "kernel_size: expected an integer or [height, width]",
        ),
        (
            "conv2d: {out_channels: 4, kernel_size: 3.5}",
            "kernel_size: expected an integer or [height, width]",
        ),
        ("conv2d: {out_channels: 4, kernel_size: 3, padding: sane}", "padding: expected an integer"),
        ("conv2d: {out_channels: 4, kernel_size: 3, padding: same, stride: 2}", "`same` wants stride 1"),
        ("conv2d: {out_channels: 4, kernel_size: 3, padding: 9, padding_mode: reflect}", "9 is too much"),
        (
            "conv2d: {out_channels: 4, kernel_size: 3, in_channels: 1}",
            "in_channels: 1 does not fit the input, which has 3",
        ),
        ("conv2d: {out_channels: 9223372036854775807, kernel_size: 3}", "is out of range"),
        ("conv2d: {out_channels: 16777216, kernel_size: 1, padding: 16777216}", "which is too large"),
        ("conv2d: {out_channels: 16777216, kernel_size: 16777216, padding: 16777216}", "too large"),
        ("conv_transpose2d: {out_channels: 4, kernel_size: 1, padding: 5}", "padding: leaves nothing"),
        (
            "conv_transpose2d: {out_channels: 4, kernel_size: 3, output_padding: 1}",
            "must be smaller than the stride",
        ),
        ("conv_transpose2d: {out_channels: 4, kernel_size: 3, stride: 16777216}", "which is too large"),
        ("dropout: {p: 1.5}", "p: 1.5 is out of range: expected a number from 0 to 1"),
        ("dropout: {p: -0.1}", "p: -0.1 is out of range"),
        ("batch_norm2d: {momentum: 2}", "momentum: 2 is out of range"),
        ("batch_norm2d: {eps: -1}", "eps: -1 is out of range"),
        ("batch_norm2d: {num_features: 4}", "num_features: 4 does not fit"),
        ("group_norm: {num_groups: 2}", "num_groups: 2 does not divide the 3 channels"),
        ("layer_norm: {normalized_shape: [8, 3]}", "[8, 3] is not how the input [3, 8, 8] ends"),
        ("max_pool2d: {kernel_size: 2, padding: 2}", "padding: 2 is more than half of the kernel size, 2"),
        ("max_pool2d: {kernel_size: 20}", "20x20 is larger than the padded input, 8x8"),
        ("adaptive_avg_pool2d: {output_size: 0}", "output_size: 0 is out of range"),
        ("avg_pool2d: {kernel_size: 2, divisor_override: 0}", "divisor_override: 0 is out of range"),
        ("flatten: {start_dim: 0}", "start_dim: 0 is no dimension of [3, 8, 8]"),
        ("flatten: {start_dim: 3, end_dim: 2}", "start_dim: 3 comes after end_dim, 2"),
        ("reshape: {shape: [5, -1]}", "[5, -1] does not hold the 192 values"),
        ("reshape: {shape: [-1, -1]}", "only one size can be -1"),
        ("unflatten: {unflattened_size: [2, 2]}", "[2, 2] does not hold the 3 values"),
        ("upsample: {scale_factor: 0}", "scale_factor: 0 is out of range"),
        ("upsample: {scale_factor: 1.0e+300}", "which is too large"),
        ("upsample: {}", "give scale_factor, size or like"),
        ("upsample: {like: input}", "upsample.like: wants layers before it in its list"),
        ("upsample: {like: inputs}", "unknown choice `inputs`; did you mean `input`?"),
        ("pixel_shuffle: {upscale_factor: 2}", "its square must divide the 3 channels"),
        ("pixel_unshuffle: {downscale_factor: 3}", "3 does not divide the 8x8 input"),
        ("subsample_pad: {out_channels: 4}", "by an even number"),
        ("softmax: {dim: 4}", "4 is no dimension"),
        ("softmax: {dim: -9223372036854775808}", "is no dimension"),
        ("flatten: {end_dim: -9223372036854775808}", "is no dimension"),
        ("hardtanh: {min_val: 2}", "max_val: 1 must be above min_val, 2"),
        ("prelu: {num_parameters: 2}", "2 is neither 1 nor the 3 channels"),
        ("layer_norm: {normalized_shape: []}", "is not how the input"),
    ] {
        complains(&format!("input: [3, 8, 8]\nlayers:\n  a: {{{layer}}}\n"), expected);
    }
    for input in ["[]", "[0]", "[-1, 2, 2]", "[1, 2, 3, 4]", "[9223372036854775807, 2]", "[a]", "7"] {
        complains(&format!("input: {input}\nlayers: [relu]\n"), "input");
    }
}

#[test]
fn arguments_and_blocks_are_checked_as_layers_are() {
    let with = |rest: &str| format!("args: {{width: 4}}\ninput: [4]\n{rest}\n");
    complains(
        &with("layers: [linear: {out_features: $widht}]"),
        "unknown argument `$widht`; did you mean `$width`?",
    );
    complains(&with("layers: [linear: {out_features: \"${width / 0}\"}]"), "divides by zero");
    complains(&with("layers: [linear: {out_features: \"${width / 3}\"}]"), "expected a whole number");
    complains(&with("layers: [linear: {out_features: \"${width *}\"}]"), "is no formula");
    complains(&with("layers: [$width]"), "is 4, which is no layer");
    let block = "blocks: {fc: {args: {n: ~}, layers: [linear: {out_features: $n}]}}\n";
    complains(&with(&format!("{block}layers: [fc]")), "layers.0: block `fc` wants the argument `n`");
    complains(&with(&format!("{block}layers: [fc: {{m: 2}}]")), "block `fc` has no argument `m`");
    complains(
        &with(&format!("{block}layers: [fc: {{n: 2}}, conv: {{fc: {{n: -1}}}}]")),
        "blocks.fc.layers.0.linear.out_features: -1 is out of range: expected an integer from 1 to 16777216 (at `1.conv.0`)",
    );
    complains(
        "blocks: {a: {layers: [b]}, b: {layers: [a]}}\ninput: [4]\nlayers: [a]\n",
        "a block cannot hold itself: `a` → `b` → `a`",
    );
    complains("blocks: {relu: {layers: [tanh]}}\ninput: [4]\nlayers: [relu]\n", "is a word of the language");
    complains("args: {\"a b\": 1}\ninput: [4]\nlayers: [relu]\n", "letters, digits and `_`");
    complains("args: {n: ~}\ninput: [4]\nlayers: [relu]\n", "args.n: has no default: give it a value");
}

#[test]
fn networks_without_end_are_refused() {
    for times in ["0", "-3", "1000000", "1.5", "x"] {
        complains(
            &format!("input: [4]\nlayers: [repeat: {{times: {times}, layers: [relu]}}]\n"),
            "layers.0.repeat.times",
        );
    }
    complains(
        "input: [4]\nlayers: [repeat: {times: 5000, layers: [repeat: {times: 5000, layers: [relu]}]}]\n",
        "more than 10000 layers",
    );
    let doubling: Vec<_> = (1..40).map(|n| format!("  b{n}: {{layers: [b{0}, b{0}]}}", n - 1)).collect();
    complains(
        &format!("blocks:\n  b0: {{layers: [relu]}}\n{}\ninput: [4]\nlayers: [b39]\n", doubling.join("\n")),
        "more than",
    );
    complains(
        &format!("input: [4]\nlayers: {}relu{}\n", "[".repeat(60), "]".repeat(60)),
        "more than 48 levels",
    );
    complains("input: [4]\nlayers: []\n", "holds no layers");
    complains("input: [4]\nlayers: {a: {}}\n", "holds no layers");
    complains("input: [4]\nlayers: 3\n", "expected a mapping or a list of layers");
    complains("input: [4]\nlayers: [3]\n", "3 is no layer");
}

#[test]
fn two_layers_cannot_share_a_name() {
    complains(
        "input: [4]\nlayers: [residual: {layers: [linear: {out_features: 4}], shortcut: [linear: {out_features: 4}]}]\n",
        "a second layer with the parameter names `0.0.*`",
    );
    for name in ["a.b", "-a", "_-", "__", "a b"] {
        complains(
            &format!("input: [4]\nlayers: {{\"{name}\": relu}}\n"),
            &format!("`{name}` is no name for a layer"),
        );
    }
    complains(
        "input: [4]\nlayers: {_r: {repeat: {times: 2, layers: {\"a{i - 1}\": relu}}}}\n",
        "`a{i - 1}`: -1 is neither text nor a whole number from 0 up",
    );
}

#[test]
fn a_wrong_model_in_a_run_config_is_reported_at_its_key() {
    let error = |spec| {
        let spec: ModelSpec = serde_json::from_value(spec).expect("a spec");
        let invalid = spec.validate().expect_err("it is wrong");
        assert!(Model::from_spec(&spec).is_err());
        (invalid.path, invalid.message)
    };
    let (path, message) = error(json!("resnet81"));
    assert_eq!((path.as_str(), message.as_str()), ("", "unknown model `resnet81`; did you mean `resnet18`?"));
    let (path, message) = error(json!({"name": "lenet", "args": {"clases": 3}}));
    assert_eq!(path, "args.clases");
    assert_eq!(message, "model `lenet` has no argument `clases`; did you mean `classes`?");
    let (path, message) = error(json!({"name": "lenet", "args": {"classes": "three"}}));
    assert_eq!(
        (path.as_str(), message.as_str()),
        ("args.classes", "expected a number, as the default 10 is, got \"three\"")
    );
    let (path, message) = error(json!({"input": [4], "layers": ["rellu"]}));
    assert_eq!(
        (path.as_str(), message.as_str()),
        ("layers.0", "unknown layer `rellu`; did you mean `relu`?")
    );
    let (path, message) = error(json!({"name": "lenet", "args": {"size": -1}}));
    assert_eq!(path, "");
    assert!(message.starts_with("<built-in> lenet.yaml:10:1: input: [1, -1, -1] is no input"), "{message}");
}

/// A description whose structure shows whether `word` was read as the composite that it nearly is.
fn with_composite(composite: &str, word: &str, form: usize) -> String {
    let body = match composite {
        "residual" | "multiply" | "subtract" => {
            "{layers: {a: {conv2d: {out_channels: 3, kernel_size: 1}}, b: relu}}"
        }
        "repeat" => "{times: $n, layers: [relu, tanh]}",
        "if" => "{test: \"${n == 2}\", layers: [relu, tanh]}",
        // As the shortcut, it must keep the channels.
        "concat" if form == 3 => "[relu]",
        _ => "[relu, {conv2d: {out_channels: 3, kernel_size: 1}}]",
    };
    let layers = match form {
        0 => format!("[{word}: {body}]"),
        1 => format!("{{x: {{{word}: {body}}}}}"),
        2 => format!("{{_x: {{{word}: {body}}}, y: relu}}"),
        _ => format!("[residual: {{layers: [relu], shortcut: {{{word}: {body}}}}}]"),
    };
    format!(
        "args: {{n: 2}}\nblocks: {{cell: {{args: {{act: relu}}, layers: [$act]}}}}\ninput: [3, 4, 4]\nlayers: {layers}\n"
    )
}

fn structure(text: &str) -> Result<String, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("net.yaml");
    std::fs::write(&file, text).expect("the file is written");
    let spec: ModelSpec = serde_json::from_value(json!(file.to_str().expect("text"))).expect("a spec");
    let model = Model::from_spec(&spec).map_err(|error| {
        assert_eq!(tikhonov::util::exit_code::code(&error), 2, "{error:#}");
        format!("{error:#}")
    })?;
    let names: Vec<&str> = model.params().iter().map(|param| param.name.as_str()).collect();
    Ok(format!("{} {names:?}", model.structure().expect("a structure")))
}

/// Every word that one deletion, substitution, insertion or exchange of neighbours makes of `word`.
fn single_edits(word: &str) -> Vec<String> {
    let letters: Vec<char> = word.chars().collect();
    let mut edits = Vec::new();
    for at in 0..=letters.len() {
        for letter in ('a'..='z').chain(['0', '_', 'S']) {
            let (before, after) = letters.split_at(at);
            edits.push(before.iter().chain([&letter]).chain(after).collect());
            if let Some((_, after)) = after.split_first() {
                edits.push(before.iter().chain([&letter]).chain(after).collect());
            }
        }
        if at < letters.len() {
            edits.push([&letters[..at], &letters[at + 1..]].concat().iter().collect());
        }
        if at + 1 < letters.len() {
            let mut letters = letters.clone();
            letters.swap(at, at + 1);
            edits.push(letters.iter().collect());
        }
    }
    edits
}

#[test]
fn every_single_slip_in_a_composite_is_refused_or_means_the_same() {
    let mut refused = 0;
    for composite in ["residual", "multiply", "subtract", "concat", "repeat", "sequential", "if"] {
        for form in 0..4 {
            let meant = structure(&with_composite(composite, composite, form))
                .unwrap_or_else(|error| panic!("{composite} {form}: {error}"));
            for word in single_edits(composite) {
                let text = with_composite(composite, &word, form);
                match structure(&text) {
                    Ok(found) => assert_eq!(found, meant, "{text}"),
                    Err(_) => refused += 1,
                }
            }
        }
    }
    assert!(refused > 9_000, "{refused}");
    // The same of the keys inside, and of a block's name whose arguments could be layers.
    for (right, text) in [
        ("layers", "input: [3]\nlayers: [residual: {WORD: [relu], shortcut: [tanh]}]\n"),
        ("shortcut", "input: [3]\nlayers: [residual: {layers: [relu], WORD: [tanh]}]\n"),
        ("times", "input: [3]\nlayers: [repeat: {layers: [relu], WORD: 2}]\n"),
        (
            "cell",
            "blocks: {cell: {args: {act: relu}, layers: [$act, $act]}}\ninput: [3]\nlayers: [WORD: {act: tanh}]\n",
        ),
    ] {
        let meant = structure(&text.replace("WORD", right)).expect("it is right");
        for word in single_edits(right) {
            let text = text.replace("WORD", &word);
            if let Ok(found) = structure(&text) {
                assert_eq!(found, meant, "{text}");
            }
        }
    }
}

#[test]
fn an_unknown_composite_is_named_with_the_nearest() {
    let layers = |layers: &str| format!("input: [3, 4, 4]\nlayers: {layers}\n");
    for (text, expected) in [
        (
            "{a: {residul: {layers: [relu]}}}",
            "layers.a.residul: unknown composite `residul`; did you mean `residual`?",
        ),
        (
            "[concta: {a: relu, b: tanh}]",
            "layers.0.concta: unknown composite `concta`; did you mean `concat`?",
        ),
        ("{concta: {a: relu, b: tanh}}", "layers.concta: unknown composite `concta`; did you mean `concat`?"),
        (
            "[multiplication: {layers: [relu]}]",
            "unknown composite `multiplication`; composites are aux, concat, if, multiply, repeat, residual, sequential, subtract",
        ),
        ("[mul: {layers: [relu]}]", "unknown composite `mul`; did you mean `multiply`?"),
        ("{_a: {minus: {layers: [relu]}}}", "unknown composite `minus`; did you mean `subtract`?"),
        ("{substract: {layers: [relu]}}", "unknown composite `substract`; did you mean `subtract`?"),
        ("[cat: [relu, tanh]]", "unknown composite `cat`; did you mean `concat`?"),
        ("{_add: {skip: [relu, tanh]}}", "unknown composite `skip`; did you mean `residual`?"),
        ("{anything: {layers: [relu]}}", "layers.anything.layers: `layers` is no name for a layer"),
        ("[anything: {layers: [relu]}]", "layers.0.anything: unknown composite `anything`; composites are"),
        (
            "{residual: {layers: [relu]}}",
            "layers.residual: `residual` is no name for a layer but a composite",
        ),
        ("{_concat: {a: relu, b: tanh}}", "unknown composite `_concat`; did you mean `concat`?"),
        ("[concat: {layers: [relu, tanh]}]", "layers.0.concat.layers: `layers` is no name for a layer"),
        ("{a: relu, shortcut: [tanh]}", "layers.shortcut: `shortcut` is no name for a layer"),
    ] {
        complains(&layers(text), expected);
    }
    // Names that look alike, and can only be names.
    for text in [
        "{stem: {conv: {conv2d: {out_channels: 2, kernel_size: 1}}}}",
        "{a: {conv: [relu, {conv2d: {out_channels: 2, kernel_size: 1}}]}}",
        "{residual1: {residual: {layers: [relu]}}, _residual: {residual: {layers: [tanh]}}}",
        "{residuals: {sequential: [relu, tanh]}, concat2: relu}",
        "{_x: {sequential: {skip: [relu, tanh]}}}",
        "[residual: {layers: {layers: [relu]}, shortcut: {shortcut: [tanh, relu]}}]",
        "{convt: {conv_transpose2d: {out_channels: 2, kernel_size: 1}}}",
    ] {
        structure(&layers(text)).unwrap_or_else(|error| panic!("{text}: {error}"));
    }
    let shortcut =
        structure(&layers("[residual: {layers: [concat: [relu, tanh]], shortcut: {concat: [relu, tanh]}}]"));
    assert_eq!(shortcut.expect("it is right").matches("oncat").count(), 2);
}
