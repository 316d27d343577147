//! Winograd's convolution against libtorch's own in float64.

use tch::{Kind, Tensor};
use tikhonov::libtorch::kernels::winograd::conv2d;

use crate::common::{self, channels_last, run, tikhonov};

struct Case {
    batch: i64,
    channels: [i64; 2],
    size: [i64; 2],
    padding: i64,
    bias: bool,
}

/// Of variance 1, rounded to float32.
fn noise(size: &[i64], salt: f64) -> Tensor {
    (common::noise(size, salt) * 3f64.sqrt()).to_kind(Kind::Float).to_kind(Kind::Double)
}

/// The result and the gradients of xs, weight and bias.
fn outcome(case: &Case, kind: Kind, ours: bool) -> Vec<Tensor> {
    let Case { batch, channels: [from, to], size: [height, width], padding, bias } = *case;
    let leaf = |tensor: Tensor| tensor.to_kind(kind).set_requires_grad(true);
    let xs = channels_last(&noise(&[batch, from, height, width], 0.1).relu(), kind).set_requires_grad(true);
    let weight = leaf(noise(&[to, from, 3, 3], 0.2) * (2.0 / (9 * from) as f64).sqrt());
    let bias = bias.then(|| leaf(noise(&[to], 0.3)));
    let ys = match ours {
        true => conv2d(&xs, &weight, bias.as_ref(), padding).unwrap().expect("it pays here"),
        false => xs.conv2d(&weight, bias.as_ref(), [1, 1], [padding, padding], [1, 1], 1),
    };
    let dys = noise(&ys.size(), 0.4).to_kind(kind);
    (&ys * dys).sum(kind).backward();
    let mut all = vec![ys.detach(), xs.grad(), weight.grad()];
    all.extend(bias.map(|bias| bias.grad()));
    all.into_iter().map(|tensor| tensor.to_kind(Kind::Double).contiguous()).collect()
}

/// The root mean square of the difference, as a share of that of the values.
fn apart(one: &Tensor, other: &Tensor) -> f64 {
    (one - other).norm().double_value(&[]) / other.norm().double_value(&[])
}

/// Whole tiles and cut ones, channels that fill vectors and that do not, many tiles and fewer than channels.
fn cases() -> Vec<Case> {
    let case = |batch, channels, size, padding, bias| Case { batch, channels, size, padding, bias };
    vec![
        case(2, [64, 64], [32, 32], 1, true),
        case(40, [16, 16], [28, 20], 1, false),
        case(3, [24, 48], [13, 27], 1, true),
        case(5, [17, 70], [12, 9], 2, true),
        case(5, [40, 33], [14, 22], 0, false),
        case(20, [96, 528], [4, 4], 1, true),
        case(64, [512, 256], [4, 4], 1, false),
    ]
}

#[test]
fn values_and_gradients_are_those_of_float64_to_four_times_the_rounding_of_a_direct_convolution() {
    for case in cases() {
        let truth = outcome(&case, Kind::Double, false);
        let (ours, libtorch) = (outcome(&case, Kind::Float, true), outcome(&case, Kind::Float, false));
        for (i, ((ours, libtorch), truth)) in ours.iter().zip(&libtorch).zip(&truth).enumerate() {
            let (own, other) = (apart(ours, truth), apart(libtorch, truth));
            let Case { batch, channels, size, padding, .. } = case;
            assert!(
                own <= 4.0 * other + 3e-7,
                "{batch} {channels:?} {size:?} {padding}, tensor {i}: {own:e}, libtorch {other:e}"
            );
        }
    }
}

#[test]
fn a_convolution_gives_the_same_bits_on_one_thread_and_on_four() {
    let threads = tch::get_num_threads();
    for case in cases() {
        let [one, three, twelve] = [1, 3, 12].map(|threads| {
            tch::set_num_threads(threads);
            outcome(&case, Kind::Float, true)
        });
        let equal = |other: &[Tensor]| one[..3].iter().zip(other).all(|(one, other)| one.equal(other));
        assert!(equal(&three) && equal(&twelve), "{:?} {:?}", case.channels, case.size);
    }
    tch::set_num_threads(threads);
}

#[test]
fn what_does_not_pay_or_does_not_fit_is_left_to_libtorch() {
    let takes = |xs: &Tensor, weight: &[i64], padding: i64| {
        let weight = noise(weight, 0.1).to_kind(Kind::Float);
        conv2d(xs, &weight, None, padding).unwrap().is_some()
    };
    let images =
        |channels: i64, side: i64, kind: Kind| channels_last(&noise(&[16, channels, side, side], 0.2), kind);
    assert!(takes(&images(16, 8, Kind::Float), &[16, 16, 3, 3], 1));
    // Too few channels, too small a result, too few images.
    assert!(!takes(&images(3, 8, Kind::Float), &[16, 3, 3, 3], 1));
    assert!(!takes(&images(16, 8, Kind::Float), &[1, 16, 3, 3], 1));
    assert!(!takes(&images(16, 2, Kind::Float), &[16, 16, 3, 3], 1));
    assert!(!takes(&images(16, 2, Kind::Float), &[16, 16, 3, 3], 0));
    assert!(!takes(&images(16, 4, Kind::Float).narrow(0, 0, 2), &[16, 16, 3, 3], 1));
    // Another kernel, another kind, another order, more padding than kernel.
    assert!(!takes(&images(16, 8, Kind::Float), &[16, 16, 5, 5], 1));
    assert!(!takes(&images(16, 8, Kind::Double), &[16, 16, 3, 3], 1));
    assert!(!takes(&images(16, 8, Kind::Float).contiguous(), &[16, 16, 3, 3], 1));
    assert!(!takes(&images(16, 8, Kind::Float), &[16, 16, 3, 3], 3));
    // libtorch says what is wrong with channels that do not agree.
    assert!(!takes(&images(16, 8, Kind::Float), &[16, 32, 3, 3], 1));
}

const CONFIG: &str = "
model: {name: small-cnn, args: {channels: 1, size: 16, classes: 10, width: 24}}
task: classification
data: {train: {shapes: {count: 64, size: 16}}, batch_size: 32}
penalty: {l2: 0.001}
optimizer: {sgd: {lr: 0.05}}
train: {epochs: 2}
";

#[test]
fn training_learns_the_same_by_either_method_and_on_every_instruction_set() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("c.yaml");
    std::fs::write(&config, CONFIG).unwrap();
    let train = |name: &str, winograd: bool, capability: &str| {
        let out = home.path().join(name);
        let set = format!("train.winograd={winograd}");
        let done = tikhonov()
            .args(["train", config.to_str().unwrap(), "--device", "cpu", "--set", &set, "--output"])
            .arg(&out)
            .env("ATEN_CPU_CAPABILITY", capability)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let mut tensors = Tensor::read_safetensors(out.join("checkpoints/last/model.safetensors")).unwrap();
        tensors.sort_by(|(one, _), (other, _)| one.cmp(other));
        tensors
    };
    let direct = train("direct", false, "default");
    for capability in ["default", "avx2", "avx512"] {
        let ours = train(capability, true, capability);
        assert_eq!(ours.len(), direct.len());
        assert!(ours.iter().zip(&direct).any(|((_, ours), (_, direct))| !ours.equal(direct)), "{capability}");
        // A value next to zero may fall on the other side of a ReLU, which shows in biases that have just
        // left zero.
        for ((name, ours), (_, direct)) in ours.iter().zip(&direct).filter(|((_, ours), _)| ours.dim() > 1) {
            let apart = apart(&ours.to_kind(Kind::Double), &direct.to_kind(Kind::Double));
            assert!(apart < 1e-3, "{capability} {name}: {apart:e}");
        }
    }
    let (code, _, stderr) = run(&["train", config.to_str().unwrap(), "--set", "train.winograd=2"]);
    assert!(code == 2 && stderr.contains("winograd"), "{stderr}");
}
