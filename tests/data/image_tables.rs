//! Pictures that the rows of a table name.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tikhonov::data::{Dataset, Targets};
use tikhonov::util::exit_code;

use super::{at, bytes, labels, made_by, mistake, numbers, open, python_in, refusal, spec, values, xs};
use crate::common::{killed_at, run, saved, succeeds, write_config};

/// Twelve pictures in `im/a`, `im/b`, `im/c`, and `labels.csv` with their paths below `im`, classes, numbers,
/// patients and parts.
const PICTURES: &str = "
from PIL import Image
import os
rng = np.random.default_rng(0)
rows = []
for k, c in enumerate('abc'):
    os.makedirs(f'im/{c}')
    for i in range(8):
        a = rng.integers(0, 255, (20 + i, 24, 3), np.uint8)
        a[:, :, k] //= 4
        Image.fromarray(a).save(f'im/{c}/{i}.png')
        part = 'train' if i < 5 else 'Valid' if i < 7 else 'test'
        rows.append((f'{c}/{i}.png', c, i / 4, f'p{(i + k) % 5}', part))
with open('labels.csv', 'w') as f:
    print('path,kind,size,patient,part', file=f)
    for row in rows: print(*row, sep=',', file=f)
";

fn table(folder: &Path, more: Value) -> Value {
    let mut table = json!({"file": at(folder, "labels.csv"), "size": 8});
    table.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"table": table})
}

fn set(folder: &Path, more: Value) -> Dataset {
    open(json!({"train": table(folder, more)})).train
}

fn multi_label(set: &Dataset) -> (String, Vec<f64>) {
    match &set.targets {
        Targets::MultiLabel(ys) => (set.classes.join(" "), numbers(ys)),
        _ => panic!("something else"),
    }
}

/// `Usage` of a section that is valid by itself and cannot be opened.
fn unclear(data: Value) -> String {
    match spec(data).open(0) {
        Ok(_) => panic!("it opened"),
        Err(error) => {
            assert_eq!(exit_code::code(&error), 2, "{error:#}");
            format!("{error:#}")
        }
    }
}

/// A run with this training set, in `folder`, and its weights.
pub fn weights(folder: &Path, name: &str, source: &Value, more: &str) -> Vec<u8> {
    let run = folder.join(name);
    assert_eq!(trained(folder, &run, source, more).0, 0);
    saved(&run, "model")
}

pub fn config(folder: &Path, run: &Path, source: &Value, more: &str) -> String {
    let text = format!(
        "model: {{layers: [{{conv2d: {{out_channels: 4, kernel_size: 3}}}}, relu, {{adaptive_avg_pool2d: {{output_size: 1}}}}, flatten, \
         {{linear: {{out_features: 3}}}}], input: [3, 8, 8]}}\ntask: classification\n\
         data: {{train: {source}, batch_size: 5, workers: 2{more}}}\n\
         optimizer: {{sgd: {{lr: 0.1}}}}\ntrain: {{epochs: 3}}\noutput: {}\nseed: 3\n",
        run.display()
    );
    write_config(folder, &text)
}

pub fn trained(folder: &Path, run_folder: &Path, source: &Value, more: &str) -> (i32, String, String) {
    run(&["train", &config(folder, run_folder, source, more), "--threads", "1"])
}

#[test]
fn a_table_trains_to_the_bits_of_the_same_pictures_in_folders() {
    let (folder, _) = made_by(PICTURES);
    let folder = folder.path();
    let plain = json!({"folder": {"root": at(folder, "im"), "size": 8}});
    let table = table(folder, json!({"label": "kind"}));
    // Resident; decoded when their turn comes; and with the augmentation that cuts from the files.
    for (name, more) in [
        ("resident", ""),
        ("files", ", memory_gib: 0, validation: {fraction: 0.2}"),
        ("cut", ", augment: [{random_resized_crop: {}}, {flip: {horizontal: true}}]"),
    ] {
        let a = weights(folder, &format!("{name}-folder"), &plain, more);
        assert_eq!(a, weights(folder, &format!("{name}-table"), &table, more), "{name}");
    }
    // Killed in the middle of epochs, it ends with the same bits.
    let run = folder.join("killed");
    let config = config(folder, &run, &table, ", memory_gib: 0, validation: {fraction: 0.2}");
    let often = "train={epochs: 30, log_every: 1, checkpoint: {every_steps: 1, keep: 1}}";
    let args = ["train", &config, "--threads", "1", "--set", often, "--resume"];
    let kills = killed_at(&[10, 50, 90], &run.join("metrics.jsonl"), &args);
    assert!(kills > 0, "the run was over before it was killed");
    let whole = folder.join("whole");
    succeeds(&[&args[..], &["--output", whole.to_str().unwrap()]].concat());
    assert_eq!(saved(&run, "model"), saved(&whole, "model"));
}

#[test]
fn columns_that_are_not_said_are_found_where_there_is_one_choice_and_said() {
    let (folder, _) = made_by(&format!(
        "{PICTURES}
import csv, shutil
rows = list(csv.DictReader(open('labels.csv')))
os.makedirs('kaggle/train_images')
with open('kaggle/train.csv', 'w') as f:
    print('image_id,label', file=f)
    for i, r in enumerate(rows):
        shutil.copy('im/' + r['path'], f'kaggle/train_images/{{100 + i}}.png')
        print(100 + i, 'abc'.index(r['kind']), sep=',', file=f)"
    ));
    // Kaggle's table as it comes: paths without extension, in a folder beside it.
    let kaggle = json!({"table": {"file": at(&folder, "kaggle/train.csv"), "size": 8}});
    let found = open(json!({"train": kaggle})).train;
    let by_folder = open(json!({"train": {"folder": {"root": at(&folder, "im"), "size": 8}}})).train;
    assert_eq!(bytes(xs(&found)), bytes(xs(&by_folder)));
    assert_eq!((labels(&found), found.classes.join(" ")), (labels(&by_folder), "0 1 2".to_owned()));
    assert_eq!(found.name(1).unwrap(), "101");
    let told = found.notes.join("\n");
    for part in [
        "column `image_id` names the pictures, in ",
        "train_images\n",
        "column `label` is what is predicted",
        "column `label`: whole numbers, a class each (`targets: values` takes them as numbers)",
        "names 24 of 24 files without their extension, .png",
    ] {
        assert!(told.contains(part), "{told}");
    }
    // Several choices are a mistake that lists them.
    let folder = folder.path();
    let told = unclear(json!({"train": table(folder, json!({}))}));
    assert!(
        told.contains("data.train.table.label: say which column to predict, as in `label: kind`: there are `kind`, `size`, `patient`, `part`"),
        "{told}"
    );
    let told = mistake(json!({"train": table(folder, json!({"label": "kinds"}))}));
    assert!(
        told.starts_with("train.table.label: there is no column `kinds`; did you mean `kind`?"),
        "{told}"
    );
    let told =
        unclear(json!({"train": table(folder, json!({"root": at(folder, "kaggle"), "label": "kind"}))}));
    assert!(told.contains("data.train.table.image: no column of"), "{told}");
}

#[test]
fn labels_are_classes_numbers_or_several_classes() {
    let (folder, _) = made_by(&format!(
        "{PICTURES}
names = ['a/0.png', 'b/1.png', 'c/2.png']
with open('many.jsonl', 'w') as f:
    for n, l, m in zip(names, [['x', 'y'], [], ['z']], [1, 2.5, 3]):
        print(json.dumps({{'file': n, 'tags': l, 'meta': {{'mass': m}}}}), file=f)
open('flags.csv', 'w').write('file,cat,dog\\n' + ''.join(f'{{n}},{{a}},{{b}}\\n' for n, a, b in zip(names, [0, 1, 1], [1, 1, 0])))
open('cells.tsv', 'w').write('file\\ttags\\n' + ''.join(f'{{n}}\\t{{t}}\\n' for n, t in zip(names, ['x|y', '', 'z'])))"
    ).replace("import os", "import os, json"));
    let folder = folder.path();
    let by = |file: &str, more: Value| {
        let mut more = more;
        more["file"] = json!(at(folder, file));
        more["root"] = json!(at(folder, "im"));
        set(folder, more)
    };
    let tags = ("x y z".to_owned(), vec![1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    assert_eq!(multi_label(&by("many.jsonl", json!({"label": "tags"}))), tags);
    assert_eq!(multi_label(&by("cells.tsv", json!({"separator": "|"}))), tags);
    let declared = by("cells.tsv", json!({"separator": "|", "classes": ["z", "y", "x"]}));
    assert_eq!(multi_label(&declared).1, [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    let flags = by("flags.csv", json!({"label": ["cat", "dog"]}));
    assert_eq!(multi_label(&flags), ("cat dog".to_owned(), vec![0.0, 1.0, 1.0, 1.0, 1.0, 0.0]));
    assert!(flags.notes.join("\n").contains("zeros and ones, a class each"), "{:?}", flags.notes);
    assert_eq!(values(&by("many.jsonl", json!({"label": "meta.mass"}))), [1.0, 2.5, 3.0]);
    let both = by("flags.csv", json!({"label": ["cat", "dog"], "targets": "values"}));
    assert_eq!((values(&both), both.classes.len()), (vec![0.0, 1.0, 1.0, 1.0, 1.0, 0.0], 0));
    // Numbers are numbers unless they are said to be classes.
    assert_eq!(values(&set(folder, json!({"label": "size", "limit": 3}))), [0.0, 0.25, 0.5]);
    let classes = set(folder, json!({"label": "size", "targets": "classes"}));
    assert_eq!(classes.classes.len(), 8);
    // Declared names give the order, or name the numbers.
    let ordered = set(folder, json!({"label": "kind", "classes": ["c", "b", "a"]}));
    assert_eq!((labels(&ordered)[0], labels(&ordered)[23]), (2, 0));
    let named = by("flags.csv", json!({"label": "cat", "classes": ["no", "yes"]}));
    assert_eq!((labels(&named), named.classes.join(" ")), ([0, 1, 1].as_slice(), "no yes".to_owned()));
}

#[test]
fn every_picture_that_is_missing_is_listed_with_its_row() {
    let (folder, _) = made_by(PICTURES);
    let folder = folder.path();
    fs::remove_file(folder.join("im/a/1.png")).unwrap();
    fs::remove_file(folder.join("im/c/7.png")).unwrap();
    let told = refusal(json!({"train": table(folder, json!({"label": "kind"}))}));
    for part in [
        "2 of 24 pictures are not there; bring the files, or remove their rows:",
        "labels.csv:3: ",
        "im/a/1.png\n",
        "labels.csv:25: ",
        "im/c/7.png",
    ] {
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn rows_go_to_sets_by_a_column_and_folds_go_by_any_column() {
    let (folder, _) = made_by(PICTURES);
    let path = folder.path();
    let part = |more: Value| table(path, more);
    let sets = open(json!({
        "train": part(json!({"label": "kind", "split": "part"})),
        "validation": part(json!({"label": "kind", "split": "part"})),
        "test": part(json!({"label": "kind", "split": {"part": ["test"]}})),
    }));
    let lens =
        [Some(&sets.train), sets.validation.as_ref(), sets.test.as_ref()].map(|set| set.unwrap().len());
    assert_eq!(lens, [15, 6, 3]);
    assert!(sets.train.notes.join("\n").contains("15 of 24 rows are of this set, by `split`"));
    let told = refusal(json!({"train": part(json!({"label": "kind", "split": "patient"}))}));
    assert!(told.contains("no row of column `patient` says `train`, `training`, there are `p0`"), "{told}");

    // The folds are scikit-learn's.
    let expected = python_in(
        path,
        "
import csv
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold
rows = list(csv.DictReader(open('labels.csv')))
kind, patient, part = ([r[c] for r in rows] for c in ('kind', 'patient', 'part'))
x = np.zeros(len(rows))
for name, folds in [('kind', StratifiedKFold(3).split(x, kind)), ('part', StratifiedKFold(3).split(x, part)),
                    ('group', GroupKFold(3).split(x, groups=patient)),
                    ('both', StratifiedGroupKFold(3).split(x, part, patient))]:
    for _, test in folds: print(name, *[rows[i]['path'] for i in test])",
    );
    let mut told = String::new();
    for (name, keys) in [
        ("kind", json!({})),
        ("part", json!({"stratify": "part"})),
        ("group", json!({"group": "patient"})),
        ("both", json!({"group": "patient", "stratify": "part"})),
    ] {
        for index in 0..3 {
            let mut fold = json!({"of": 3, "index": index, "shuffle": false});
            fold.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
            let sets = open(json!({"train": part(json!({"label": "kind"})), "validation": {"fold": fold}}));
            told += &format!("{name} {}\n", sets.validation.unwrap().names.join(" "));
        }
    }
    assert_eq!(told, expected);
    let fold = json!({"of": 3, "index": 0, "group": "patients"});
    let told = unclear(json!({"train": part(json!({"label": "kind"})), "validation": {"fold": fold}}));
    assert!(
        told.contains("data.validation.fold.group: there is no column `patients`; did you mean `patient`?"),
        "{told}"
    );
}

#[test]
fn every_damage_of_a_table_of_text_has_its_row_and_its_remedy() {
    let (folder, _) = made_by(PICTURES);
    let folder = folder.path();
    let row = "a/0.png,a,1\n";
    let cases: [(&str, &str, Vec<u8>, &str); 21] = [
        ("csv", "kind", b"".into(), "is empty; give a table with a line of column names"),
        ("csv", "kind", b"path,kind,size\n".into(), "has no rows"),
        ("csv", "kind", format!("path,kind,size\n{row}b/0.png,b\n").into(), ":3: has 2 columns"),
        ("csv", "kind", format!("path,kind,size\n{row}b/0.png,b,1,2\n").into(), ":3: has 4 columns"),
        ("csv", "kind", format!("path,kind,size\n{row}b/0.png,,1\n").into(), ":3: column `kind` is empty"),
        ("csv", "size", format!("path,kind,size\n{row}\n\nb/0.png,b,x1\n").into(), "did not"),
        ("csv", "kind", format!("path,kind,size\n{row},b,1\n").into(), ":3: column `path` is empty"),
        (
            "csv",
            "kind",
            [b"path,kind,size\n".as_slice(), row.as_bytes(), b"b/0.png,\xff\xfe,1\n"].concat(),
            ":3: column `kind` is no UTF-8",
        ),
        ("csv", "kind", [b"\xff\xfe".as_slice(), b"p\0a\0"].concat(), "is UTF-16; save it as UTF-8"),
        (
            "csv",
            "kind",
            format!("path,kind,size\n{row}b\\0.png,b,1\n").into(),
            "1 of 2 pictures are not there",
        ),
        ("csv", "kind", "path;kind;size\na/0.png;a;1\n".into(), "did you mean `delimiter: \";\"`?"),
        ("csv", "kind", "path,kind,kind\na/0.png,a,1\n".into(), "two columns are called `kind`; rename one"),
        ("csv", "kind", format!("path,kind,size\n{row}\"b/0.png,b,1\n").into(), ":3: has 1 columns"),
        ("csv", "kind", "path,kind\na/0.png,1\nb/0.png,1.0\n".into(), "one number written in two ways"),
        (
            "jsonl",
            "kind",
            b"{\"path\": \"a/0.png\", \"kind\": \"a\"}\n{\"path\": \"b/0.png\"".into(),
            ":2: EOF while parsing",
        ),
        (
            "jsonl",
            "kind",
            b"{\"path\": \"a/0.png\", \"kind\": \"a\"}\n[1]\n".into(),
            ":2: is no object; each line is one JSON object",
        ),
        (
            "jsonl",
            "kind",
            b"{\"path\": \"a/0.png\", \"kind\": \"a\"}\n\n{\"path\": \"b/0.png\"}\n".into(),
            ":3: column `kind` is empty",
        ),
        (
            "jsonl",
            "kind",
            b"{\"path\": \"a/0.png\", \"kind\": {\"x\": 1}}\n".into(),
            "there is no column `kind`",
        ),
        (
            "jsonl",
            "kind",
            b"{\"path\": \"a/0.png\", \"kind\": \"a\"}\n{\"path\": 3, \"kind\": \"a\"}\n".into(),
            "1 of 2 pictures are not there",
        ),
        (
            "jsonl",
            "kind",
            b"{\"path\": \"a/0.png\", \"kind\": \"a\"}\n{\"path\": [1], \"kind\": \"a\"}\n".into(),
            ":2: column `path` holds a list",
        ),
        ("xlsx", "kind", b"PK".into(), "is no .csv, .tsv, .jsonl, .parquet or .tar file; convert it to one"),
    ];
    let mut wrong = String::new();
    for (index, (extension, label, text, expected)) in cases.into_iter().enumerate() {
        let name = format!("damaged{index}.{extension}");
        fs::write(folder.join(&name), text).unwrap();
        let source = table(
            folder,
            json!({"file": at(folder, &name), "root": at(folder, "im"), "label": label, "targets": "classes"}),
        );
        let config = config(folder, &folder.join(format!("run{index}")), &source, "");
        let (code, _, told) = run(&["train", &config, "--threads", "1"]);
        if expected == "did not" {
            // Text is a class like any other.
            continue;
        }
        // What names a column that is not there is a mistake of the config.
        let usage = ["no column of", "there is no column", "did you mean", "two columns"];
        let wanted = if usage.iter().any(|part| expected.contains(part)) { 2 } else { 3 };
        if code != wanted || !told.contains(expected) {
            wrong += &format!("{index}, exit {code}, not {wanted} with `{expected}`: {told}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
