//! CSV tables.

use std::fs;

use serde_json::{Value, json};
use tch::Kind;
use tikhonov::data::DataSpec;
use tikhonov::util::yaml::Document;

use super::{at, labels, mistake, numbers, open, refusal, values, xs};

fn csv(text: &str, options: Value) -> (tempfile::TempDir, Value) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("t.csv"), text).expect("written");
    let mut source = options;
    source["file"] = json!(at(&folder, "t.csv"));
    (folder, json!({"train": {"csv": source}}))
}

#[test]
fn a_table_reads_by_column_name_in_double_precision() {
    let text = "\u{feff}rooms, price,\"area, m2\"\n3,1e5,70.12345678901235\n 2 ,-2.5,\"4.0\"\r\n1,0,5\n";
    let (_folder, data) = csv(text, json!({"target": "price"}));
    let set = open(data).train;
    assert_eq!(xs(&set).kind(), Kind::Double);
    assert_eq!(set.features, ["rooms", "area, m2"]);
    assert_eq!(numbers(xs(&set)), [3.0, 70.12345678901235, 2.0, 4.0, 1.0, 5.0]);
    assert_eq!(values(&set), [1e5, -2.5, 0.0]);
    assert!(set.classes.is_empty());

    let (_folder, data) =
        csv(text, json!({"target": ["price", "rooms"], "features": ["area, m2"], "limit": 2}));
    let set = open(data).train;
    assert_eq!((numbers(xs(&set)), values(&set)), (vec![70.12345678901235, 4.0], vec![1e5, 3.0, -2.5, 2.0]));
}

#[test]
fn a_table_without_header_has_numbered_columns_and_any_delimiter() {
    let (_folder, data) = csv("1;2;3\n4;5;6\n", json!({"target": "2", "header": false, "delimiter": ";"}));
    let set = open(data).train;
    assert_eq!((numbers(xs(&set)), values(&set)), (vec![1.0, 2.0, 4.0, 5.0], vec![3.0, 6.0]));
}

#[test]
fn a_target_may_name_classes() {
    let (_folder, data) = csv("x,kind\n1,b\n2,a\n3,b\n", json!({"target": "kind", "classes": true}));
    let set = open(data).train;
    assert_eq!((labels(&set), set.classes.join(" ")), ([1, 0, 1].as_slice(), "a b".to_owned()));
    let (_folder, data) = csv("x,kind\n1,10\n2,9\n", json!({"target": "kind", "classes": true}));
    assert_eq!(open(data).train.classes, ["9", "10"]);
}

#[test]
fn a_cell_that_is_no_number_is_refused_by_line_and_column() {
    for (text, expected) in [
        ("a,b\n1,2\n3,x\n", "t.csv:3: column `b` holds `x`"),
        ("a,b\n1,2\n\n3,\n", "t.csv:4: column `b` is empty"),
        ("a,b\r\n1,2\r\n3,x\r\n", "t.csv:3: column `b` holds `x`"),
        ("a,b\r\n1,2\r\n\r\n3,x", "t.csv:4: column `b` holds `x`"),
        ("a,b\n1,NaN\n", "t.csv:2: column `b` holds `NaN`"),
        ("a,b\n1,2\n1,-inf\n", "t.csv:3: column `b` holds `-inf`"),
        ("a,b\n\"1\n2\",2\n", "t.csv:2: column `a`"),
        ("a,b\n1,2\n1,2,3\n", "t.csv:3: has 3 columns, the lines before have 2"),
        ("a,b\n1,2\n1\n", "t.csv:3: has 1 columns"),
        ("a,b\n", "has no rows"),
    ] {
        let (_folder, data) = csv(text, json!({"target": "b"}));
        let told = refusal(data);
        assert!(told.contains(expected), "{text:?}: {told}");
    }
}

#[test]
fn a_column_that_is_not_there_is_a_mistake_of_the_config() {
    let (_folder, data) = csv("rooms,price\n1,2\n", json!({"target": "prize"}));
    let told = mistake(data);
    assert!(
        told.starts_with("train.csv.target: there is no column `prize`; did you mean `price`?"),
        "{told}"
    );
    let (_folder, data) =
        csv("rooms,price\n1,2\n", json!({"target": "price", "features": ["rooms", "price"]}));
    assert!(mistake(data).contains("is the target too"));
    let (_folder, data) = csv("a,a,b\n1,2,3\n", json!({"target": "a"}));
    assert!(mistake(data).contains("two columns"));
    let (_folder, data) = csv("a\n1\n", json!({"target": "a"}));
    assert!(mistake(data).contains("no column to predict from"));
}

#[test]
fn tables_with_other_columns_do_not_make_one_run() {
    let (_train, train) = csv("a,b,y\n1,2,3\n", json!({"target": "y"}));
    let (_test, test) = csv("b,a,y\n1,2,3\n", json!({"target": "y"}));
    let told = refusal(json!({"train": train["train"], "test": test["train"]}));
    assert!(told.contains("the columns are a, b in the training set and b, a in the test set"), "{told}");
}

#[test]
fn mistakes_in_a_data_section_name_line_key_and_what_was_expected() {
    let told = |section: &str| {
        let text = format!("data:\n  train: {section}\n");
        let document = Document::parse("run.yaml", &text).expect("YAML");
        format!("{:#}", document.decode_at::<DataSpec>("data").expect_err("a mistake"))
    };
    for (section, expected) in [
        ("{csv: {file: t.csv, target: 2}}", "run.yaml:2:30: data.train.csv.target: expected a column name"),
        (
            "{folder: {root: ., size: big}}",
            "run.yaml:2:29: data.train.folder.size: expected a number of pixels per side",
        ),
        (
            "{folder: im/train}",
            "data.train.folder: expected a mapping, such as `{root: im/train, size: 64}`, found the text `im/train`",
        ),
        ("{folder: {root: ., size: 8, mode: gray}}", "data.train.folder.mode"),
        ("{shapes: {count: 3}}\n  validation: {fractoin: 0.1}", "did you mean `fraction`"),
        ("{shapes: {count: 3, sise: 28}}", "did you mean `size`"),
        ("{cifar10: {files: 7}}", "data.train.cifar10.files: expected a path, or a list of paths"),
    ] {
        let told = told(section);
        assert!(told.contains(expected), "{section}: {told}");
    }
}

#[test]
fn a_table_of_zero_length_is_refused() {
    let (_folder, data) = csv("", json!({"target": "y"}));
    let told = mistake(data);
    assert!(told.starts_with("train.csv.file: is empty"), "{told}");
}
