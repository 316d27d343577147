//! Generated samples, the validation split, smoothing.

use serde_json::json;
use tch::Kind;

use super::{at, sums};
use super::{bytes, labels, made_by, mistake, numbers, open, spec, values, xs};

#[test]
fn generated_pictures_are_functions_of_seed_set_and_index() {
    let shapes = |count: usize, seed: u64| json!({"shapes": {"count": count, "seed": seed}});
    let sets = open(json!({"train": shapes(300, 0), "validation": shapes(300, 0), "test": shapes(300, 0)}));
    let (train, test) = (bytes(xs(&sets.train)), bytes(xs(sets.test.as_ref().expect("a test set"))));
    assert_ne!(train, test);
    assert_ne!(train, bytes(xs(sets.validation.as_ref().expect("a validation set"))));
    let again = open(json!({"train": shapes(300, 0)})).train;
    assert_eq!((&train, &sets.train.fingerprint), (&bytes(xs(&again)), &again.fingerprint));
    let fewer = open(json!({"train": shapes(100, 0)})).train;
    assert_eq!(train[..100 * 784], bytes(xs(&fewer)));
    assert_ne!(bytes(xs(&open(json!({"train": shapes(100, 1)})).train)), bytes(xs(&fewer)));
    assert_eq!(xs(&sets.train).size(), [300, 1, 28, 28]);
    assert_eq!(labels(&sets.train)[..12], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]);
    // No two pictures are equal, and none is flat.
    let mut pictures: Vec<&[u8]> = train.chunks(784).chain(test.chunks(784)).collect();
    assert!(pictures.iter().all(|picture| picture.iter().max() > picture.iter().min()));
    pictures.sort();
    pictures.dedup();
    assert_eq!(pictures.len(), 600);
}

#[test]
fn a_line_has_the_slope_the_range_and_the_noise_that_are_declared() {
    let line = json!({"slope": 3, "intercept": 5, "noise": 1, "count": 20_000, "low": 0, "high": 2});
    let set = open(json!({"train": {"line": line}})).train;
    let (xs, ys) = (numbers(xs(&set)), values(&set));
    let n = xs.len() as f64;
    let (mean_x, mean_y) = (xs.iter().sum::<f64>() / n, ys.iter().sum::<f64>() / n);
    let covariance: f64 = xs.iter().zip(&ys).map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / n;
    let variance: f64 = xs.iter().map(|x| (x - mean_x).powi(2)).sum::<f64>() / n;
    let slope = covariance / variance;
    let residual = xs.iter().zip(&ys).map(|(x, y)| (y - 3.0 * x - 5.0).powi(2)).sum::<f64>() / n;
    // The standard error of the slope is 1 / √(20000 / 3) ≈ 0.012.
    assert!((slope - 3.0).abs() < 0.05, "slope {slope}");
    assert!((mean_y - slope * mean_x - 5.0).abs() < 0.06);
    assert!((residual - 1.0).abs() < 0.05, "noise variance {residual}");
    assert!(xs.iter().all(|x| (0.0..2.0).contains(x)));
    assert!((mean_x - 1.0).abs() < 0.02);
}

#[test]
fn the_sets_of_a_sparse_linear_model_share_its_weights() {
    let linear =
        |count: usize| json!({"linear": {"features": 6, "informative": 2, "noise": 0, "count": count}});
    let sets = open(json!({"train": linear(50), "test": linear(30)}));
    let test = sets.test.as_ref().expect("a test set");
    let ys = |set| tch::Tensor::from_slice(&values(set)).view([-1, 1]);
    // Without noise the least squares of one set predict the other exactly.
    let (weights, ..) = xs(&sets.train).linalg_lstsq(&ys(&sets.train), None, "gelsy");
    let error = (xs(test).matmul(&weights) - ys(test)).abs().max().double_value(&[]);
    assert!(error < 1e-9, "error {error}");
    let weights = numbers(&weights);
    assert_eq!(weights.iter().filter(|weight| weight.abs() > 1e-9).count(), 2);
    assert!(
        weights.iter().filter(|weight| weight.abs() > 1e-9).all(|weight| (1.0..3.0).contains(&weight.abs()))
    );
}

#[test]
fn a_validation_fraction_takes_its_share_of_every_class_by_the_seed() {
    let data = json!({"train": {"shapes": {"count": 1000, "size": 16}}, "validation": {"fraction": 0.2}});
    let split = |seed| {
        let sets = spec(data.clone()).open(seed).expect("opens");
        (sets.train, sets.validation.expect("a validation set"))
    };
    let (train, validation) = split(1);
    assert_eq!((train.len(), validation.len()), (800, 200));
    for class in 0..10 {
        assert_eq!(labels(&validation).iter().filter(|&&label| label == class).count(), 20);
    }
    // To the nearest sample.
    let line = json!({"slope": 1, "intercept": 0, "noise": 0, "low": 0, "high": 1, "count": 13});
    let sets =
        spec(json!({"train": {"line": line}, "validation": {"fraction": 0.2}})).open(1).expect("opens");
    assert_eq!((sets.train.len(), sets.validation.expect("a validation set").len()), (10, 3));
    // Together they are the whole, each sample once.
    let whole = open(json!({"train": {"shapes": {"count": 1000, "size": 16}}})).train;
    let sorted = |parts: &[Vec<u8>]| {
        let mut samples: Vec<Vec<u8>> =
            parts.iter().flat_map(|part| part.chunks(256)).map(<[u8]>::to_vec).collect();
        samples.sort();
        samples
    };
    let parts = [bytes(xs(&train)), bytes(xs(&validation))];
    assert!(sorted(&parts) == sorted(&[bytes(xs(&whole))]));
    let (again, _) = split(1);
    assert_eq!(again.fingerprint, train.fingerprint);
    assert_eq!(bytes(xs(&again)), parts[0]);
    let (other, _) = split(2);
    assert_ne!(other.fingerprint, train.fingerprint);
    assert_ne!(bytes(xs(&other)), parts[0]);
}

#[test]
fn smoothing_equals_scipy() {
    let (folder, expected) = made_by(
        "
from scipy import ndimage as nd
x = np.random.default_rng(5).integers(0, 256, (6, 2, 9, 7), dtype=np.uint8); np.save('x', x); np.save('y', np.zeros(6, int))
f = x.astype(np.float64)
for g in [
    lambda p: nd.gaussian_filter(p, 0.5), lambda p: nd.gaussian_filter(p, 3.0),
    lambda p: nd.uniform_filter(p, 3), lambda p: nd.median_filter(p, 5),
]:
    print(sums(np.stack([np.stack([np.rint(g(p)) for p in i]) for i in f])))
",
    );
    let smoothed = |smooth| {
        let npy = json!({"xs": at(&folder, "x.npy"), "ys": at(&folder, "y.npy")});
        let set = open(json!({"train": {"npy": npy}, "smooth": smooth})).train;
        assert_eq!(xs(&set).kind(), Kind::Uint8);
        sums(xs(&set)) + "\n"
    };
    let ours = smoothed(json!({"gaussian": {"sigma": 0.5}}))
        + &smoothed(json!({"gaussian": {"sigma": 3.0}}))
        + &smoothed(json!({"box": {"size": 3}}))
        + &smoothed(json!({"median": {"size": 5}}));
    assert_eq!(ours, expected);
}

#[test]
fn values_out_of_range_are_refused_by_their_key() {
    let shapes = json!({"shapes": {"count": 10}});
    let with = |key: &str, value: serde_json::Value| {
        let mut data = json!({"train": shapes});
        data[key] = value;
        mistake(data)
    };
    assert!(with("batch_size", json!(0)).starts_with("batch_size:"));
    assert!(with("max_skipped", json!(1.5)).starts_with("max_skipped:"));
    assert!(with("memory_gib", json!(-1)).starts_with("memory_gib:"));
    assert!(with("validation", json!({"fraction": 1.0})).starts_with("validation.fraction:"));
    assert!(with("test", json!({"shapes": {"count": 0}})).starts_with("test.shapes.count:"));
    assert!(
        with("validation", json!({"shapes": {"count": 9, "noise": 2}}))
            .starts_with("validation.shapes.noise:")
    );
    assert!(with("smooth", json!({"gaussian": {"sigma": 0}})).starts_with("smooth.gaussian.sigma:"));
    assert!(with("smooth", json!({"median": {"size": 4}})).starts_with("smooth.median.size:"));
    let line = json!({"slope": 3, "intercept": 5, "noise": -1, "count": 9, "low": 0, "high": 2});
    assert!(mistake(json!({"train": {"line": line}})).starts_with("train.line.noise:"));
}

#[test]
fn folds_are_those_of_scikit_learn_and_shuffled_ones_share_the_classes_out() {
    let (folder, printed) = made_by(
        "
from sklearn.model_selection import KFold, StratifiedKFold
rng = np.random.default_rng(4)
x = np.arange(53.0); c = rng.choice(['b', 'a', 'c'], 53, p=[.6, .3, .1])
open('classes.csv', 'w').write('x,c\\n' + ''.join(f'{v},{k}\\n' for v, k in zip(x, c)))
open('numbers.csv', 'w').write('x,c\\n' + ''.join(f'{v},{2 * v}\\n' for v in x))
for cv, y in [(StratifiedKFold(5), c), (KFold(5), None)]:
    for _, test in cv.split(x[:, None], y): print(*test)
",
    );
    let section = |file: &str, index: usize, shuffle: bool| {
        let csv = json!({"file": at(folder.path(), file), "target": "c", "classes": file == "classes.csv"});
        let fold = json!({"of": 5, "index": index, "shuffle": shuffle});
        json!({"train": {"csv": csv}, "validation": {"fold": fold}})
    };
    let mut expected = printed.lines();
    for file in ["classes.csv", "numbers.csv"] {
        for index in 0..5 {
            let sets = open(section(file, index, false));
            let rows: Vec<_> = numbers(xs(&sets.validation.unwrap())).iter().map(|x| x.to_string()).collect();
            assert_eq!(Some(rows.join(" ").as_str()), expected.next(), "{file}, fold {index}");
        }
        let mut all = Vec::new();
        for index in 0..5 {
            let sets = open(section(file, index, true));
            let validation = sets.validation.unwrap();
            assert_eq!(validation.len() + sets.train.len(), 53);
            if file == "classes.csv" {
                let share = labels(&validation).iter().filter(|&&label| label == 1).count();
                assert!((5..=7).contains(&share), "32 of 53 are `b`: {share} in a fold");
            }
            all.extend(numbers(xs(&validation)));
        }
        all.sort_by(f64::total_cmp);
        assert_eq!(all, (0..53).map(f64::from).collect::<Vec<_>>(), "every sample is judged once");
    }
}

#[test]
fn folds_of_groups_are_those_of_scikit_learn_and_no_group_is_in_two() {
    let (folder, printed) = made_by(
        "
from sklearn.model_selection import GroupKFold
rng = np.random.default_rng(5)
# Groups of 1 to 12 rows: no two of one size, whose order scikit-learn leaves to its sort.
g = rng.permutation(np.repeat([f'p{i}' for i in range(12)], np.arange(1, 13)))
x = np.arange(78.0)
open('table.csv', 'w').write('x,patient,y\\n' + ''.join(f'{v},{k},{2 * v}\\n' for v, k in zip(x, g)))
for _, test in GroupKFold(5).split(x[:, None], None, g): print(*test)
print(*g)
",
    );
    let section = |group: &str, of: usize, index: usize, shuffle: bool| {
        let csv = json!({"file": at(folder.path(), "table.csv"), "target": "y"});
        let fold = json!({"of": of, "index": index, "shuffle": shuffle, "group": group});
        json!({"train": {"csv": csv}, "validation": {"fold": fold}})
    };
    let expected: Vec<&str> = printed.lines().collect();
    let groups: Vec<&str> = expected[5].split(' ').collect();
    for shuffle in [false, true] {
        let mut fold_of = std::collections::HashMap::new();
        for (index, wanted) in expected.iter().take(5).enumerate() {
            let sets = open(section("patient", 5, index, shuffle));
            assert_eq!(sets.train.features, ["x"], "the group is no feature");
            let rows = numbers(xs(&sets.validation.unwrap()));
            let shown: Vec<_> = rows.iter().map(|x| x.to_string()).collect();
            assert!(shuffle || shown.join(" ") == *wanted, "fold {index}");
            for row in rows {
                assert_eq!(*fold_of.entry(groups[row as usize]).or_insert(index), index);
            }
        }
        assert_eq!(fold_of.len(), 12);
    }
    let fails = |section| format!("{:#}", spec(section).open(0).err().unwrap());
    assert!(fails(section("doctor", 5, 0, true)).contains("there are x, patient, y"));
    assert!(fails(section("patient", 13, 0, true)).contains("12 groups cannot fill 13 folds"));
}
