//! `tikhonov encode` and `tikhonov decode`, driven as a user drives them.

use std::fs;
use std::path::Path;

use tch::{Kind, no_grad};
use tikhonov::data::image::photo::Photo;
use tikhonov::inference::loaded_model::{LoadedModel, WeightSelection};

use crate::common::run;
use crate::generation::Place;

const NET: &str = "{name: autoencoder, args: {channels: 1, size: 28, width: 8, code: 6}}";
const PICTURES: &str = "
os.makedirs('in')
y, x = np.mgrid[:203, :301]
wave = 128 + 60 * np.sin(x / 9) * np.cos(y / 14) + 50 * ((x // 40 + y // 30) % 2)
noise = np.random.default_rng(0).normal(0, 6, wave.shape)
grey = np.clip(wave + noise, 0, 255).astype(np.uint8)
save = lambda a, n: Image.fromarray(a).save('in/' + n)
save(grey, 'a.png'); save(np.dstack([grey, grey[::-1], 255 - grey]), 'b.png')
save(grey[:3, :5], 'small.png'); save(grey[:1, :1], 'point.png')
save(np.dstack([grey] * 3 + [grey[:, ::-1]]), 'alpha.png'); save(grey.astype(np.uint16) * 257, 'deep.png')
";

fn place() -> Place {
    let place = Place::trained(NET, "compression");
    place.python(PICTURES);
    place
}

/// What `encode` says: pixels, bytes, bits per pixel, PSNR.
fn told(line: &str) -> [f64; 4] {
    let said = line.rsplit_once(": ").unwrap().1.trim();
    let words: Vec<&str> = said.split([',', ' ', 'x']).filter(|word| !word.is_empty()).collect();
    let number = |at: usize| words[at].parse().unwrap_or_else(|_| panic!("{line}"));
    [number(0) * number(1), number(2), number(4), number(9)]
}

#[test]
fn what_comes_back_is_what_evaluation_judges_for_the_bits_that_it_reports() {
    let place = place();
    fs::create_dir(place.path("one")).unwrap();
    fs::copy(place.path("in/a.png"), place.path("one/a.png")).unwrap();
    // A code of many values, as that of a network after five steps is not.
    place.python(
        "from safetensors.torch import load_file
state = load_file('run/checkpoints/last/model.safetensors')
state['encoder.4.weight'] *= 60; state['decoder.0.weight'] /= 60
torch.save(state, 'w.pt')",
    );
    let net = ["@run", "--weights", "@w.pt"];
    let line = place.done("encode", &[&net[..], &["@in/a.png", "-o", "@a.tikc"]].concat());
    let [pixels, bytes, rate, psnr] = told(&line);
    assert_eq!(pixels, 203.0 * 301.0);
    assert_eq!(bytes as u64, fs::metadata(place.path("a.tikc")).unwrap().len());
    assert!((rate - 8.0 * bytes / pixels).abs() < 1e-4, "{line}");

    let set = format!("data.test={{images: {{root: {}, mode: grey}}}}", place.path("one"));
    let scores = place.done("eval", &[&net[..], &["--set", &set]].concat());
    let score = |name: &str| -> f64 {
        let line = scores.lines().find(|line| line.trim().starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // 42 bytes of header; half a bit for every value and doubling.
    let entropy = score("bits_per_pixel") * pixels / 8.0;
    assert!(
        entropy > 3000.0 && bytes > entropy && bytes < 1.04 * entropy + 100.0,
        "{bytes} bytes, an entropy of {entropy}"
    );
    assert!((score("psnr") - psnr).abs() < 0.02, "{line}\n{scores}");

    place.done("decode", &[&net[..], &["@a.tikc", "-o", "@back.png"]].concat());
    let read = |name: &str| {
        let photo = Photo::read(Path::new(&place.path(name))).unwrap();
        photo.part(0, 0, photo.height, photo.width).unwrap()
    };
    let weights = place.path("w.pt");
    let choice = WeightSelection { weights: Some(Path::new(&weights)), ..WeightSelection::default() };
    let trained = LoadedModel::open(Path::new(&place.path("run")), &[], [], &choice).unwrap();
    trained.use_threads();
    let network = trained.network().unwrap();
    let task = trained.config.spec.task.build();
    let want = no_grad(|| task.forward(&network, &read("in/a.png"), false)).unwrap().outputs;
    let levels = |image: &tch::Tensor| (image.clamp(0.0, 1.0) * 255.0).round().to_kind(Kind::Uint8);
    assert!(levels(&read("back.png")).equal(&levels(&want)));
}

#[test]
fn every_size_and_kind_of_image_goes_through_a_folder_of_files() {
    let place = place();
    place.done("encode", &["@run", "@in", "-o", "@codes"]);
    place.done("decode", &["@run", "@codes", "-o", "@out"]);
    place.python(
        "sizes = {n: Image.open('out/' + n).size for n in sorted(os.listdir('out'))}
assert sizes == {n: Image.open('in/' + n).size for n in sorted(os.listdir('in'))}, sizes
assert {Image.open('out/' + n).mode for n in sizes} == {'L'}
assert abs(read('out/a.png') - read('out/deep.png')).max() == 0",
    );
    let (code, _, stderr) = place.call("encode", &["@run", "@in", "-o", "@codes"]);
    assert!(code == 2 && stderr.contains("--force replaces it"), "{stderr}");
    place.done("encode", &["@run", "@in", "-o", "@codes", "--force"]);
    fs::write(place.path("in/text.png"), "no picture").unwrap();
    let (code, stdout, stderr) = place.call("encode", &["@run", "@in", "-o", "@again"]);
    assert!(
        code == 3 && stdout.contains("a.png") && stderr.contains("1 of 7 files could not be encoded"),
        "{stderr}"
    );
}

#[test]
fn colours_go_through_a_network_of_colours() {
    let place = place();
    place.config(
        "colours",
        "{name: autoencoder, args: {channels: 3, size: 32, width: 8, code: 6}}",
        "compression",
    );
    place.python(
        "torch.manual_seed(0)
n = torch.nn
e = n.Sequential(n.Conv2d(3, 8, 5), n.ReLU(), n.Conv2d(8, 8, 5), n.ReLU(), n.Conv2d(8, 6, 5))
d = n.Sequential(n.ConvTranspose2d(6, 8, 5), n.ReLU(), n.ConvTranspose2d(8, 8, 5), n.ReLU(), n.ConvTranspose2d(8, 3, 5))
torch.save(n.ModuleDict({'encoder': e, 'decoder': d}).state_dict(), 'c.pt')",
    );
    let net = ["@colours.yaml", "--weights", "@c.pt"];
    place.done("encode", &[&net[..], &["@in/b.png", "-o", "@b.tikc"]].concat());
    place.done("decode", &[&net[..], &["@b.tikc", "-o", "@b.png"]].concat());
    place.python("assert read('b.png').shape == read('in/b.png').shape");
    let (code, _, stderr) = place.call("decode", &["@run", "@b.tikc", "-o", "@c.png"]);
    assert!(code == 4 && stderr.contains("encoded with another network"), "{stderr}");
}

#[test]
fn files_that_are_damaged_or_anothers_are_refused() {
    let place = place();
    place.train("other", NET, "{compression: {rate: 0.1}}");
    place.done("encode", &["@run", "@in/a.png", "-o", "@a.tikc"]);
    let file = fs::read(place.path("a.tikc")).unwrap();
    let refused = |bytes: &[u8], run: &str, part: &str| {
        fs::write(place.path("bad.tikc"), bytes).unwrap();
        let (code, _, stderr) = place.call("decode", &[run, "@bad.tikc", "-o", "@bad.png"]);
        assert!(
            code == 4 && stderr.contains(part) && stderr.contains("bad.tikc"),
            "{part}: {code}, {stderr}"
        );
        assert!(!Path::new(&place.path("bad.png")).exists());
    };
    let sealed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = file[..file.len() - 4].to_vec();
        change(&mut bytes);
        let crc = crc32fast::hash(&bytes).to_le_bytes();
        [bytes, crc.to_vec()].concat()
    };
    refused(&file, "@other", "encoded with another network");
    refused(b"", "@run", "is no compressed image");
    refused(&fs::read(place.path("in/a.png")).unwrap(), "@run", "is no compressed image");
    refused(&file[..file.len() / 2], "@run", "is damaged or truncated");
    refused(&sealed(&|bytes| bytes[4] = 9), "@run", "version 9");
    // The sides of the image and of the code, far too large: nothing of that size is ever made.
    refused(&sealed(&|bytes| bytes[13..21].fill(0xff)), "@run", "no image has 4294967295x4294967295 pixels");
    refused(&sealed(&|bytes| bytes[13..21].fill(0)), "@run", "no image has 0x0 pixels");
    refused(
        &sealed(&|bytes| bytes[26..34].fill(0xff)),
        "@run",
        "is damaged: 301x203 pixels are a code of [6, 26, 38]",
    );
    refused(&sealed(&|bytes| bytes[22..26].fill(0xff)), "@run", "is truncated");
    let (code, _, stderr) = place.call("decode", &["@run", "@in", "-o", "@out"]);
    assert!(code == 4 && stderr.contains("6 of 6 files could not be decoded"), "{stderr}");
    let (code, _, stderr) = place.call("sample", &["@run", "-o", "@no.png"]);
    assert!(code == 2 && stderr.contains("is no generation"), "{stderr}");
}

#[test]
fn images_that_a_network_of_one_size_does_not_take_are_refused() {
    let layers = "{encoder: [flatten, {linear: {out_features: 5}}], _quantize: quantize, \
                  decoder: [{linear: {out_features: 784}}, {unflatten: {unflattened_size: [1, 28, 28]}}]}";
    let place = Place::trained(&format!("{{input: [1, 28, 28], layers: {layers}}}"), "compression");
    place.python(PICTURES);
    let (code, _, stderr) = place.call("encode", &["@run", "@in/a.png", "-o", "@a.tikc"]);
    assert!(code == 3 && stderr.contains("the network takes images of [1, 28, 28]"), "{stderr}");
    place.python("Image.open('in/a.png').resize((28, 28)).save('fits.png')");
    place.done("encode", &["@run", "@fits.png", "-o", "@fits.tikc"]);
    place.done("decode", &["@run", "@fits.tikc", "-o", "@back.png"]);
    place.python("assert read('back.png').shape == (28, 28)");
    let (code, _, _) = run(&["encode", "quickstart", "x.png", "-o", "y.tikc"]);
    assert_ne!(code, 0);
}
