//! Segmentation masks: what the pixels of a file say, and which class that is.

mod encoding;
mod level;
mod mask_image;

pub use encoding::{Encoding, Unclaimed};
pub use level::Level;
pub use mask_image::MaskImage;

/// What a decoded mask holds where a pixel counts nowhere; its class is negative in a batch.
pub const IGNORED: u8 = 255;

/// A share in percent as text: one decimal, more where it would be 0.
pub fn percent(share: f64) -> String {
    match share * 100.0 {
        percent if percent >= 0.05 || percent == 0.0 => format!("{percent:.1} %"),
        percent => format!("{percent:.1e} %"),
    }
}

/// The colour of a class in the palette of Pascal VOC: the bits of the number, three by three, from the
/// highest on.
pub fn voc_colour(class: u8) -> [u8; 3] {
    let channel = |first: u32| {
        (0..3)
            .filter(|place| u32::from(class) >> (3 * place + first) & 1 == 1)
            .map(|place| 128u8 >> place)
            .sum()
    };
    [channel(0), channel(1), channel(2)]
}

/// Tints RGB pixels by their classes: the mean of a pixel and its class's colour, of every class but the first.
pub fn tint(pixels: &mut [u8], classes: &[u8]) {
    for (pixel, &class) in pixels.chunks_exact_mut(3).zip(classes).filter(|(_, class)| **class != 0) {
        for (value, colour) in pixel.iter_mut().zip(voc_colour(class)) {
            *value = ((u16::from(*value) + u16::from(colour)) / 2) as u8;
        }
    }
}

/// What is known of the masks of a set: how they are read, and what they hold.
#[derive(Clone, Debug)]
pub struct Masks {
    pub encoding: Encoding,
    /// Pixels of each class, and of none, in the files that were looked at.
    pub pixels: Vec<u64>,
    pub ignored: u64,
    /// Files that were looked at, of how many.
    pub looked_at: [usize; 2],
    /// How they are read, as notes print it.
    pub reading: String,
}

impl Masks {
    /// The classes that no pixel shows.
    pub fn absent<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = &'a str> {
        names.iter().zip(&self.pixels).filter(|(_, count)| **count == 0).map(|(name, _)| name.as_str())
    }

    /// The share of each class among the pixels that count, and of the ignored ones among all, as lines of
    /// text.
    pub fn notes(&self, set: &str, names: &[String]) -> Vec<String> {
        let counted: u64 = self.pixels.iter().sum();
        let share = |count: u64, whole: u64| percent(count as f64 / whole.max(1) as f64);
        let mut shares: Vec<_> = names
            .iter()
            .zip(&self.pixels)
            .map(|(name, count)| format!("{name} {}", share(*count, counted)))
            .collect();
        if self.ignored > 0 {
            shares.push(format!("ignored {}", share(self.ignored, counted + self.ignored)));
        }
        let files = match self.looked_at {
            [some, all] if some < all => format!("{some} of {all} masks"),
            [all, _] => format!("all {all} masks"),
        };
        let mut notes =
            vec![format!("{set}: {} of the pixels ({files}; {})", shares.join(", "), self.reading)];
        let absent: Vec<_> = self.absent(names).map(|name| format!("`{name}`")).collect();
        if !absent.is_empty() {
            let (classes, occur, them) = match absent.len() {
                1 => ("class", "occurs", "it is"),
                _ => ("classes", "occur", "one is"),
            };
            let outcome = match set {
                "train" => "nothing is learnt of it".to_owned(),
                _ => format!("mean_dice and mean_iou leave it out, or count 0 where {them} predicted"),
            };
            notes.push(format!(
                "{set}: {classes} {} never {occur} in the masks: {outcome}",
                absent.join(", ")
            ));
        }
        notes
    }
}
