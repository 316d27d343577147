//! `tikhonov preview`: the sheet shows what is loaded, and what augmentation makes of it.

use image::{GenericImageView, RgbImage};

use crate::common::{python, run, succeeds, write_config};

fn sheet(file: &std::path::Path) -> RgbImage {
    image::open(file).unwrap().to_rgb8()
}

/// The levels of the panel at a row and a column, where panels are `side` wide and captions have one line.
fn panel(sheet: &RgbImage, row: u32, column: u32, side: u32, lines: u32) -> Vec<u8> {
    let top = row * (lines * 8 + 4 + side + 2) + lines * 8 + 4 + 2;
    sheet.view(2 + column * (side + 2), top, side, side).to_image().into_raw()
}

#[test]
fn a_sheet_shows_samples_as_loaded_and_as_augmented_before_anything_is_trained() {
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(
        folder.path(),
        "device: cpu\nmodel: {name: small-cnn, args: {channels: 1, size: 28, classes: 10, width: 4}}\n\
         task: classification\ndata:\n  train: {shapes: {count: 40, size: 28}}\n  batch_size: 3\n\
         augment: [{invert: {p: 1}}]\noptimizer: {sgd: {lr: 0.1}}\ntrain: {epochs: 1}\n"
            .replace("\naugment", "\n  augment")
            .as_str(),
    );
    let file = folder.path().join("sheet.png");
    let out = file.to_str().unwrap();
    let told = succeeds(&["preview", &config, "-o", out, "--samples", "5", "--epochs", "2"]);
    assert!(told.contains("sheet.png: the first samples of epoch 1"), "{told}");
    let drawn = sheet(&file);
    // 28 pixels are enlarged to 168; the first caption has the sample's name and its class.
    let lines = (1..4).find(|lines| drawn.height() == 5 * (lines * 8 + 4 + 168 + 2) + 2).expect("five rows");
    assert_eq!(drawn.width(), 3 * 170 + 2);
    for row in 0..5 {
        let [plain, first, second] = [0, 1, 2].map(|column| panel(&drawn, row, column, 168, lines));
        assert!(plain.iter().zip(&first).all(|(a, b)| a.abs_diff(255 - b) <= 1), "row {row}");
        assert_eq!(first, second);
    }
    assert!(!std::path::Path::new("runs").join("config").exists());

    let (code, _, told) = run(&["preview", &config, "-o", out]);
    assert!(code == 2 && told.contains("--force replaces it"), "{told}");
    let table = write_config(
        folder.path(),
        "device: cpu\nmodel: {name: linear, args: {features: 1, outputs: 1}}\ntask: regression\ndata: {train: {line: {count: 20, slope: 1, intercept: 2, noise: 1, low: 0, high: 2}}}\n\
         optimizer: {sgd: {lr: 0.1}}\ntrain: {epochs: 1}\n",
    );
    let (code, _, told) = run(&["preview", &table, "-o", out, "--force"]);
    assert!(code == 2 && told.contains("no pictures"), "{told}");
}

#[test]
fn masks_tint_the_pictures_they_move_with() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().display();
    python(&format!(
        "import numpy as np, os\nfrom PIL import Image\nos.makedirs('{place}/im')\nos.makedirs('{place}/m')\n\
         for i in range(4):\n    x = np.full((48, 48), 200, np.uint8)\n    c = np.zeros((48, 48), np.uint8)\n    \
         x[8:30, 10:40] = 40\n    c[8:30, 10:40] = 1\n    Image.fromarray(x).save(f'{place}/im/{{i}}.png')\n    \
         Image.fromarray(c).save(f'{place}/m/{{i}}.png')"
    ));
    let config = write_config(
        folder.path(),
        &format!(
            "device: cpu\nmodel: {{name: unet-milesial, args: {{size: 48, width: 4, classes: 2}}}}\ntask: segmentation\n\
             data:\n  train: {{images: {{root: {place}/im, mode: grey, patch: 48, mask: {{root: {place}/m, classes: [ground, object]}}}}}}\n  \
             augment: [{{affine: {{degrees: 180, translate: [0.2, 0.2], scale: [0.6, 1.4], fill: 200}}}}, \
             {{perspective: {{interpolation: nearest, fill: 200}}}}, {{random_resized_crop: {{scale: [0.5, 1]}}}}, \
             {{posterize: {{bits: 8}}}}]\n\
             optimizer: {{sgd: {{lr: 0.1}}}}\ntrain: {{epochs: 1}}\n"
        ),
    );
    let file = folder.path().join("masks.png");
    succeeds(&["preview", &config, "-o", file.to_str().unwrap(), "--samples", "4", "--epochs", "3"]);
    let drawn = sheet(&file);
    // Objects are 40 and tinted by (128, 0, 0): (84, 20, 20); ground is 200; in between the crop interpolates.
    let (mut objects, mut strange, mut all) = (0, 0, 0);
    for row in 0..4 {
        for column in 1..4 {
            for pixel in panel(&drawn, row, column, 192, 1).chunks_exact(3) {
                let is_object = pixel[0].abs_diff(84) <= 1 && pixel[1].abs_diff(20) <= 1;
                objects += i32::from(is_object);
                strange += i32::from(!is_object && pixel[0] < 190);
                all += 1;
            }
        }
    }
    assert!(objects * 10 > all, "{objects} of {all}");
    assert!(strange * 20 < all, "the tint covers its object: {strange} of {all}");
}
