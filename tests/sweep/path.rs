//! The λ path against scikit-learn's.

use std::fs;

use super::{lines, table};
use crate::common::{python, run, succeeds};

#[test]
fn the_lasso_path_is_scikit_learns() {
    let home = tempfile::tempdir().unwrap();
    let config = table(home.path());
    let csv = home.path().join("table.csv");
    let output = home.path().join("sweep");
    // All 60 rows are learnt from; what they are judged by is no matter here.
    let validation = format!("data.validation={{csv: {{file: {}, target: y}}}}", csv.display());
    let fixed = ["sweep", &config, "--over", "penalty.l1=2:1e-2:log:12", "--path", "--set", &validation];
    let few = ["--set", "train.epochs=200", "--output", output.to_str().unwrap()];
    let stdout = succeeds(&[fixed.as_slice(), &few].concat());
    assert!(stdout.contains("* best"), "{stdout}");
    let printed = python(&format!(
        "
import numpy as np
from sklearn.linear_model import lasso_path
t = np.loadtxt({csv:?}, delimiter=',', skiprows=1); x, y = t[:, :4], t[:, 4]
# The intercept is no part of lasso_path: centred, there is none.
alphas, coefs, _ = lasso_path(x - x.mean(0), y - y.mean(), alphas=np.geomspace(2, 1e-2, 12), tol=1e-12, max_iter=100000)
for alpha, row in zip(alphas, coefs.T): print(alpha, *row)
"
    ));
    let text = fs::read_to_string(output.join("path.csv")).unwrap();
    let mut rows = text.lines();
    assert_eq!(
        rows.next().unwrap(),
        "penalty.l1,seed,fold,linear.bias.0,linear.weight.a,linear.weight.b,linear.weight.c,linear.weight.d"
    );
    let numbers = |line: &str, separator: char| -> Vec<f64> {
        line.split(separator).map(|cell| cell.parse().unwrap_or(0.0)).collect()
    };
    let expected: Vec<_> = printed.lines().map(|line| numbers(line, ' ')).collect();
    let ours: Vec<_> = rows.map(|line| numbers(line, ',')).collect();
    assert_eq!((ours.len(), expected.len()), (12, 12));
    for (ours, theirs) in ours.iter().zip(&expected) {
        assert!((ours[0] - theirs[0]).abs() < 1e-9 * theirs[0], "{ours:?} {theirs:?}");
        for (own, their) in ours[4..].iter().zip(&theirs[1..]) {
            assert!((own - their).abs() < 1e-4, "{ours:?} {theirs:?}");
            assert_eq!(*own == 0.0, *their == 0.0, "{ours:?} {theirs:?}");
        }
    }
    // Warm: every trial but the first says where it started.
    let log = |id: usize| fs::read_to_string(output.join(format!("trials/{id:04}/config.yaml"))).unwrap();
    assert!(!log(0).contains("init_from:") && log(1).contains("trials/0000/checkpoints/last"));
    assert_eq!(lines(&output).len(), 12);
    assert_eq!(image::open(output.join("path.png")).unwrap().width(), 800);
    assert!(fs::read_to_string(output.join("path.svg")).unwrap().matches("<path class=\"l c").count() == 4);

    let two = ["sweep", &config, "--over", "penalty.l1=0,1", "--over", "penalty.l2=0,1", "--path"];
    let (code, _, stderr) = run(&two);
    assert!(code == 2 && stderr.contains("one number"), "{stderr}");
}
