use serde::Deserialize;
use serde_json::json;

use super::*;

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Run {
    optimizer: Optimizer,
    #[serde(default)]
    epochs: u64,
    #[serde(default)]
    groups: Vec<Group>,
    activation: Option<Activation>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Optimizer {
    Sgd(Sgd),
    Adam { lr: f64 },
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Sgd {
    lr: f64,
    #[serde(default)]
    momentum: f64,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Activation {
    Relu,
    Elu { alpha: f64 },
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Group {
    l2: f64,
}

fn error(text: &str, sets: &[&str]) -> String {
    let attempt = || {
        let mut document = Document::parse("x.yaml", text)?;
        sets.iter().try_for_each(|set| document.set(set))?;
        document.decode::<Run>()
    };
    let error = attempt().expect_err("the text is wrong");
    assert_eq!(crate::util::exit_code::code(&error), 2);
    format!("{error:#}")
}

const GOOD: &str = "epochs: 3\noptimizer:\n  sgd:\n    lr: 0.1\n    momentum: 0.9\ngroups:\n  - l2: 0.5\n";

#[test]
fn a_good_file_decodes() {
    let run: Run = Document::parse("x.yaml", GOOD).unwrap().decode().unwrap();
    assert_eq!(run.optimizer, Optimizer::Sgd(Sgd { lr: 0.1, momentum: 0.9 }));
}

#[test]
fn a_choice_by_name_alone_has_its_defaults() {
    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum Schedule {
        Cosine(Cosine),
        Step { gamma: Option<f64> },
        Constant,
    }
    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default)]
    struct Cosine {
        min: f64,
    }
    let document = Document::parse("x.yaml", "[cosine, step, constant]").unwrap();
    let schedules: Vec<Schedule> = document.decode().unwrap();
    let cosine = Schedule::Cosine(Cosine { min: 0.0 });
    assert_eq!(schedules, [cosine, Schedule::Step { gamma: None }, Schedule::Constant]);
}

#[test]
fn mistakes_say_line_key_path_and_remedy() {
    let cases = [
        (
            GOOD.replace("momentum", "momentm"),
            "x.yaml:5:5: optimizer.sgd.momentm: unknown key; did you mean `momentum`? (expected one of `lr`, `momentum`)",
        ),
        (GOOD.replace("l2", "zz"), "x.yaml:7:5: groups.0.zz: unknown key; expected `l2`"),
        (
            GOOD.replace("0.1", "fast"),
            "x.yaml:4:5: optimizer.sgd.lr: expected a number, found the text `fast`",
        ),
        (
            GOOD.replace("epochs: 3", "epochs: -3"),
            "x.yaml:1:1: epochs: expected a whole number, 0 or more, found the number -3",
        ),
        (
            GOOD.replace("sgd", "sdg"),
            "x.yaml:3:3: optimizer.sdg: unknown choice `sdg`; did you mean `sgd`? (expected one of `sgd`, `adam`)",
        ),
        (
            "optimizer: sdg".into(),
            "x.yaml:1:1: optimizer: unknown choice `sdg`; did you mean `sgd`? (expected one of `sgd`, `adam`)",
        ),
        ("optimizer: adam".into(), "x.yaml:1:1: optimizer.adam: the key `lr` is missing"),
        (GOOD.replace("    lr: 0.1\n", ""), "x.yaml:3:3: optimizer.sgd: the key `lr` is missing"),
        (String::new(), "x.yaml: the key `optimizer` is missing"),
        (
            "optimizer: {sgd: {lr: 1}, adam: {lr: 1}}".into(),
            "x.yaml:1:1: optimizer: expected exactly one choice, found `sgd` and `adam`; keep one. To replace one by --set, set \
             the whole of it",
        ),
        (
            "optimizer: {sgd: {lr: 1}, momentum: 0.9}".into(),
            "x.yaml:1:1: optimizer: expected exactly one choice, found `sgd` and beside it `momentum`, which is none; indent what \
             belongs to `sgd` below it, and move the rest to where it belongs",
        ),
        (
            "optimizer: {}".into(),
            "x.yaml:1:1: optimizer: expected exactly one choice, as in `name: {…}`, found none; choices are sgd, adam",
        ),
        (
            GOOD.replace("momentum", "momentm").replace("epochs: 3", "epoch: 3").replace("l2: 0.5", "l2: x"),
            "x.yaml:1:1: epoch: unknown key; did you mean `epochs`? (expected one of `optimizer`, `epochs`, `groups`, `activation`)\n       \
             x.yaml:5:5: optimizer.sgd.momentm: unknown key; did you mean `momentum`? (expected one of `lr`, `momentum`)\n       \
             x.yaml:7:5: groups.0.l2: expected a number, found the text `x`",
        ),
        (
            GOOD.replace("epochs: 3", "epochs: 99999999999999999999"),
            "x.yaml:1:1: epochs: the number 99999999999999999999 is too large: whole numbers reach from -9223372036854775808 to \
             18446744073709551615",
        ),
        (
            GOOD.replace("epochs: 3", "activation: {relu: {slope: 1}}"),
            "x.yaml:1:14: activation.relu: expected no arguments, found a mapping; write the name alone",
        ),
        (
            "optimizer: {sgd: [0.1, 0.9]}".into(),
            "x.yaml:1:13: optimizer.sgd: expected a mapping, found a list",
        ),
        (
            "optimizer: 3".into(),
            "x.yaml:1:1: optimizer: expected the name of a choice, or `name: {…}`, found the number 3",
        ),
        ("optimizer: {sgd: }".into(), "x.yaml:1:13: optimizer.sgd: the key `lr` is missing"),
        (
            GOOD.replace("0.5", ".nan"),
            "x.yaml:7:5: groups.0.l2: NaN and infinity are not allowed: expected a finite number",
        ),
        (format!("{GOOD}epochs: 4"), "x.yaml:8:1: the key `epochs` is here twice; remove one"),
        ("1: 2".into(), "x.yaml:1:1: the key `1` is not text; put it in quotes"),
        (
            "optimizer: !sgd {lr: 1}".into(),
            "x.yaml:1:1: optimizer: the tag !sgd means nothing here; remove it",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(error(&text, &[]), expected, "{text}");
    }
}

#[test]
fn a_file_may_begin_with_a_byte_order_mark_and_is_utf_8() {
    let run: Run = Document::parse("x.yaml", format!("\u{feff}{GOOD}")).unwrap().decode().unwrap();
    assert_eq!(run.epochs, 3);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.yaml");
    for (bytes, expected) in [
        (b"\xff\xfea\x00".as_slice(), "x.yaml: is UTF-16; save it as UTF-8"),
        (b"a: 1\nb: \xe9t\xe9\n", "x.yaml:2:4: byte 0xE9 is no UTF-8; save the file as UTF-8"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let error = Document::read(&file).unwrap_err();
        assert!(error.to_string().ends_with(expected), "{error:#}");
        assert_eq!(crate::util::exit_code::code(&error), 2);
    }
}

#[test]
fn a_path_may_begin_with_the_home_folder() {
    let mut tree = json!({"output": "~/x", "data": ["~/a", "b/~", 3, null], "home": "~"});
    let error = environment::expand_home(&mut tree, Some("/home/me/"), &mut Vec::new()).unwrap_err();
    assert_eq!(error, "`~`: only `~/` is expanded; write the path in full");
    assert_eq!(tree, json!({"output": "/home/me/x", "data": ["/home/me/a", "b/~", 3, null], "home": "~"}));
    let mut path = Vec::new();
    let error = environment::expand_home(&mut json!({"a": {"b": ["~/c"]}}), None, &mut path).unwrap_err();
    assert_eq!(
        (path.join(".").as_str(), error.as_str()),
        ("a.b.0", "`~/c`: HOME is not set; write the path in full")
    );
}

#[test]
fn broken_syntax_says_where() {
    assert!(error("a: [1, 2\nb: 3\n", &[]).starts_with("x.yaml:2:"), "{}", error("a: [1, 2\nb: 3\n", &[]));
    assert!(error("a: 1\n---\nb: 1", &[]).contains("more than one YAML document"));
}

#[test]
fn overrides_are_reported_as_such() {
    let cases = [
        ("epochs=abc", "--set epochs=abc: expected a whole number, 0 or more, found the text `abc`"),
        (
            "optimizer.sgd.momentm=1",
            "--set optimizer.sgd.momentm=1: unknown key; did you mean `momentum`? (expected one of `lr`, `momentum`)",
        ),
        (
            "optimizer={adam: {rl: 1}}",
            "--set optimizer={adam: {rl: 1}}: optimizer.adam.rl: unknown key; did you mean `lr`? (expected `lr`)",
        ),
        ("groups.1.l1=1", "--set groups.1.l1=1: unknown key; did you mean `l2`? (expected `l2`)"),
        ("groups.3.l2=1", "--set groups.3.l2=1: `groups` is a list of 1: `3` is no index of it"),
        (
            "epochs.count=1",
            "--set epochs.count=1: `epochs` is the number 3, so it has no key `count`; set `epochs` itself",
        ),
        ("epochs", "--set epochs: expected KEY=VALUE, such as train.epochs=3"),
        (".=1", "--set .=1: `.` is no key path; write it as in train.epochs=3"),
    ];
    for (set, expected) in cases {
        assert_eq!(error(GOOD, &[set]), expected);
    }
}

#[test]
fn overrides_replace_append_and_make_mappings() {
    let mut document = Document::parse("x.yaml", "a: {b: 1}\nl: [1]\n").unwrap();
    for set in ["a.b=[1, two]", "l.1=3", "x.y.z=1e-3", "n="] {
        document.set(set).unwrap();
    }
    assert_eq!(
        document.tree,
        json!({"a": {"b": [1, "two"]}, "l": [1, 3], "x": {"y": {"z": 1e-3}}, "n": null})
    );
}

#[test]
fn merge_keys_keep_the_order_of_the_file() {
    let text = "base: &b {x: 1, y: 2}\nlayers:\n  first: 0\n  <<: *b\n  y: 3\n  z: *b\n";
    let document = Document::parse("x.yaml", text).unwrap();
    let layers = document.value("layers").unwrap();
    assert_eq!(layers.to_string(), r#"{"first":0,"x":1,"y":3,"z":{"x":1,"y":2}}"#);
    let place = |path| document.nodes.find(&split(path)).map(|found| (found.line, found.column));
    assert_eq!(place("layers.x"), Some((1, 11)));
    assert_eq!(place("layers.z.nothing"), Some((6, 3)));
}

/// Both read the same trees; the package's own reader serves only here.
#[test]
fn configs_models_and_scalars_read_as_yaml_serde_reads_them() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts: Vec<String> = ["configs", "models"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(root.join(folder)).unwrap())
        .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok())
        .collect();
    for page in std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()) {
        let page = std::fs::read_to_string(page).unwrap_or_default();
        let blocks =
            page.split("```yaml\n").skip(1).map(|block| block.split("```").next().unwrap().to_owned());
        texts.extend(blocks);
    }
    assert!(texts.len() > 50, "{}", texts.len());
    let scalars = "0 -0 +1 007 0x1F -0x1f 0o17 0b101 1_000 1e3 1E-3 .5 5. +.5 -.5e-3 1e 1.2.3 true True TRUE yes no on y \
                   null ~ Null 12:30 2026-11-28 18446744073709551615 -9223372036854775808 0.1 1e400 infinity nan inf ++1 \
                   +-1 0x 0xg 0o8 -";
    texts
        .extend(scalars.split_whitespace().map(|scalar| format!("a: {scalar}\nb: [{scalar}, '{scalar}']\n")));
    texts.extend(
        ["a: |\n  x\n\n  y\nb: >-\n  x\n  y\n", "a: \"\\u00e9 \\x41\\n\"\nb: 'it''s'\n", "a:\nb: {c: , d}\n"]
            .map(Into::into),
    );
    for text in texts {
        let theirs = match text.contains("<<:") {
            // Its own step, there.
            true => serde_yaml::from_str::<serde_yaml::Value>(&text).and_then(|mut tree| {
                tree.apply_merge()?;
                serde_yaml::from_value(tree)
            }),
            false => serde_yaml::from_str::<Value>(&text),
        };
        match (theirs, Document::parse("x.yaml", &text)) {
            (Ok(Value::Null), Ok(ours)) => assert_eq!(ours.tree, json!({}), "{text}"),
            (Ok(theirs), Ok(ours)) => assert_eq!(theirs, ours.tree, "{text}"),
            (Err(_), Err(_)) => {}
            (theirs, ours) => panic!("{text}: {theirs:?}, {ours:?}"),
        }
    }
}

#[test]
fn what_is_written_reads_as_it_was() {
    let characters: Vec<char> = "ab:#-'\"\\ \t\n\r{}[],&*!|>%@`~0.\u{0}\u{1}\u{7f}\u{85}\u{a0}\u{e9}\u{2028}\u{2029}\u{feff}\u{ffff}\u{1f600}"
        .chars()
        .collect();
    let mut state = 1u64;
    let mut below = |end: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % end
    };
    for _ in 0..20_000 {
        let mut text = || (0..below(7)).map(|_| characters[below(characters.len())]).collect::<String>();
        let tree = json!({"a": text(), "escaped": [text(), 1, null], text(): {"b": text()}});
        let written = to_string(&tree).unwrap();
        let read =
            Document::parse("x.yaml", &written).unwrap_or_else(|error| panic!("{tree}\n{written}\n{error}"));
        assert_eq!(read.tree, tree, "{written}");
    }
    let plain = json!({"output": "runs/x", "epochs": 3, "size": [28, 28]});
    assert_eq!(to_string(&plain).unwrap(), serde_yaml::to_string(&plain).unwrap());
}

#[test]
fn hostile_texts_are_refused_quickly() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let refs = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb += &format!("a{level}: &a{level} [{refs}]\n");
    }
    assert!(error(&bomb, &[]).contains("too large for a config"), "{}", error(&bomb, &[]));
    let wide = format!("a: &a [{}]\nb: [{}]\n", "x, ".repeat(50_000), "*a, ".repeat(50_000));
    assert!(error(&wide, &[]).contains("too large for a config"));
    for opening in ["[", "{a: ", "- ", "? "] {
        let message = error(&opening.repeat(100_000), &[]);
        assert!(message.starts_with("x.yaml:1:") && message.len() < 100, "{message}");
    }
    assert!(error("a: &a [*a]", &[]).contains("alias inside its own anchor"));
    assert!(error("a: *nowhere", &[]).starts_with("x.yaml:1:"));
    assert!(error("a: \u{0}", &[]).starts_with("x.yaml:1:4: the control character U+0000"));
    assert!(error("a: 1\n---\nb: 1", &[]).starts_with("x.yaml:2:1: more than one YAML document"));
    assert!(error("a: !!str 1", &[]).starts_with("x.yaml:1:1: a: the tag !!str means nothing here"));
}

#[test]
fn references_to_the_environment_are_expanded() {
    assert_eq!(expand_env("${CARGO_PKG_NAME_NOT_SET:-data}/x").unwrap(), "data/x");
    assert_eq!(expand_env("$$x").unwrap(), "$x");
    assert!(!expand_env("${PATH}").unwrap().is_empty());
    for bad in ["$x", "${x", "${}", "${a b}", "${TIKHONOV_SURELY_NOT_SET}"] {
        assert!(expand_env(bad).is_err(), "{bad}");
    }
}
