//! The library as examples/ shows it.

use std::process::Command;

use crate::common::outcome;

#[path = "../examples/minimal.rs"]
mod minimal;

/// Started by the test below in a process of its own, for its output.
#[test]
#[ignore = "a part of another test"]
fn minimal_example() {
    minimal::main().unwrap();
}

#[test]
fn the_minimal_example_learns_the_shapes() {
    let tests = std::env::current_exe().unwrap();
    let example = ["examples::minimal_example", "--exact", "--ignored", "--nocapture"];
    let (code, stdout, stderr) = outcome(Command::new(tests).args(example).output().unwrap());
    assert_eq!(code, 0, "{stdout}\n{stderr}");
    let epochs: Vec<_> = stdout.lines().filter(|line| line.starts_with("epoch ")).collect();
    assert_eq!(epochs.len(), 5, "{stdout}");
    let number = |line: &str, name: &str| -> f64 {
        let after = line.split(name).nth(1).unwrap().trim_start();
        after.split([',', ' ']).next().unwrap().parse().unwrap()
    };
    assert!(number(epochs[4], "loss") < number(epochs[0], "loss"), "{stdout}");
    assert!(number(epochs[4], "penalty") > 0.0, "{stdout}");
    assert!(number(epochs[4], "accuracy") > 0.7, "{stdout}");
}
