//! Side-by-side pictures of a few samples while they are evaluated: what the network saw, what it answers,
//! what was wanted.

use std::path::Path;

use anyhow::{Context, Result};
use font8x8::legacy::BASIC_LEGACY;
use image::ImageFormat;
use tch::{Device, Kind, Tensor};

use crate::config::RunConfig;
use crate::data::image::photo::Photo;
use crate::data::normalize::{Normalize, NormalizeSpec};
use crate::metrics::ModelOutput;
use crate::tasks::{Panel, Task};
use crate::util::atomic_file;
use crate::util::exit_code::{ExitCode, WithExitCode};

/// Pixels between panels and around them.
const BORDER: usize = 2;
/// Sides of panels: smaller ones are enlarged by repetition, larger ones cut to their middle.
const SMALLEST: i64 = 192;
const LARGEST: i64 = 512;
/// Pixels of a letter, both ways, and the air below a caption.
const LETTER: usize = 8;
const AIR: usize = 4;

/// The first samples of a split, as far as the task has something to show.
#[derive(Default)]
pub struct SampleImages {
    wanted: usize,
    strips: Vec<Photo>,
    /// What was done to the pictures that the panels are to show as they were.
    normalize: Option<Normalize>,
}

impl SampleImages {
    /// Of the first `wanted` samples.
    pub fn of(wanted: usize) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// The same for samples as `spec` prepares them: where the network sees normalised pictures and answers
    /// with something else, the pictures are shown.
    pub fn showing(self, spec: &RunConfig) -> Self {
        let normalize = match &spec.data.normalize {
            NormalizeSpec::Given(normalize) if spec.task.task().shows_input() => Some(normalize.clone()),
            _ => None,
        };
        Self { normalize, ..self }
    }

    /// Takes from an evaluated batch what is still wanted; waits for the device then.
    pub fn observe(&mut self, task: &dyn Task, xs: &Tensor, answer: &ModelOutput, ys: &Tensor) -> Result<()> {
        let samples = answer.outputs.size().first().copied().unwrap_or(0);
        for index in 0..samples {
            if self.strips.len() == self.wanted {
                break;
            }
            let one = |tensor: &Tensor| tensor.narrow(0, index, 1);
            let given = one(xs);
            let given = self.normalize.as_ref().map_or(given.shallow_clone(), |done| done.undo(&given));
            let panels = task.panels(&given, &one(&answer.outputs), &one(ys));
            if panels.is_empty() {
                self.wanted = 0;
                break;
            }
            self.strips.push(strip(&panels)?);
        }
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.strips.is_empty()
    }

    /// Writes `FOLDER/NAME-1.png` and so on.
    pub fn save(&self, folder: &Path, name: &str) -> Result<()> {
        for (index, strip) in self.strips.iter().enumerate() {
            let path = folder.join(format!("{name}-{}.png", index + 1));
            let write = || atomic_file::write_with_folders(&path, &strip.encode(ImageFormat::Png)?);
            write().with_exit_code(ExitCode::Storage, || format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

/// The panels in a row, each under its caption.
fn strip(panels: &[Panel]) -> Result<Photo> {
    sheet(std::slice::from_ref(&panels))
}

/// Rows of panels, each panel under its caption.
pub fn sheet(rows: &[impl AsRef<[Panel]>]) -> Result<Photo> {
    let rows: Vec<Row> = rows.iter().map(|row| Row::new(row.as_ref())).collect();
    let channels = rows.iter().map(|row| row.channels).max().unwrap_or(1);
    let (width, height) =
        rows.iter().fold((0, 0), |(width, height), row| (row.width.max(width), height + row.height()));
    let mut photo = Photo::black(width + BORDER, height + BORDER, channels);
    let mut top = 0;
    for row in &rows {
        row.draw(&mut photo, top, channels)?;
        top += row.height();
    }
    Ok(photo)
}

/// Panels of one row, as they are drawn.
struct Row {
    pictures: Vec<Tensor>,
    captions: Vec<Vec<String>>,
    channels: usize,
    width: usize,
    /// Rows of pixels of the captions, and of the pictures.
    above: usize,
    below: usize,
}

impl Row {
    fn new(panels: &[Panel]) -> Self {
        let pictures: Vec<Tensor> = panels.iter().map(|panel| fit(&panel.image)).collect();
        let size = |picture: &Tensor, dim: usize| picture.size()[dim] as usize;
        let captions: Vec<Vec<String>> = (panels.iter().zip(&pictures))
            .map(|(panel, picture)| wrapped(&panel.caption, size(picture, 3) / LETTER))
            .collect();
        Self {
            channels: pictures.iter().map(|picture| size(picture, 1)).max().unwrap_or(1),
            width: pictures.iter().map(|picture| size(picture, 3) + BORDER).sum(),
            above: captions.iter().map(Vec::len).max().unwrap_or(0) * LETTER + AIR,
            below: pictures.iter().map(|picture| size(picture, 2)).max().unwrap_or(0),
            pictures,
            captions,
        }
    }

    fn height(&self) -> usize {
        self.above + self.below + BORDER
    }

    fn draw(&self, photo: &mut Photo, top: usize, channels: usize) -> Result<()> {
        let mut left = BORDER;
        for (lines, picture) in self.captions.iter().zip(&self.pictures) {
            let is_grey = (picture.size()[1] as usize) < channels;
            let picture = if is_grey { picture.repeat([1, 3, 1, 1]) } else { picture.shallow_clone() };
            photo.put(&picture, top + self.above + BORDER, left).context("a panel")?;
            for (row, line) in lines.iter().enumerate() {
                let line = caption(line).repeat([1, channels as i64, 1, 1]);
                photo.put(&line, top + BORDER + row * LETTER, left).context("a caption")?;
            }
            left += picture.size()[3] as usize + BORDER;
        }
        Ok(())
    }
}

/// A panel of a size that fits a screen, `[1, 1 or 3, H, W]`, float32 on the CPU.
fn fit(image: &Tensor) -> Tensor {
    let image = image.to_device(Device::Cpu).to_kind(Kind::Float);
    let image = if matches!(image.size()[1], 1 | 3) { image } else { image.narrow(1, 0, 1) };
    let [height, width] = [image.size()[2], image.size()[3]];
    let factor = SMALLEST.div_euclid(height.max(width).max(1)).max(1);
    let image = image.repeat_interleave_self_int(factor, 2, None).repeat_interleave_self_int(factor, 3, None);
    let middle = |image: Tensor, dim: i64, side: i64| match side > LARGEST {
        true => image.narrow(dim, (side - LARGEST) / 2, LARGEST),
        false => image,
    };
    middle(middle(image, 2, height * factor), 3, width * factor)
}

/// The words of a caption in lines of at most `letters`; a word that is longer is cut.
fn wrapped(text: &str, letters: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let word: String = word.chars().take(letters).collect();
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= letters => {
                *line += " ";
                *line += &word;
            }
            _ => lines.push(word),
        }
    }
    lines.retain(|line| !line.is_empty());
    lines
}

/// White letters on black, `[1, 1, 8, 8·letters]`.
fn caption(text: &str) -> Tensor {
    let letters: Vec<[u8; 8]> =
        text.chars().map(|letter| BASIC_LEGACY.get(letter as usize).copied().unwrap_or_default()).collect();
    let rows = (0..8usize).flat_map(|row| letters.iter().map(move |letter| letter[row]));
    // The least significant bit is the leftmost pixel.
    let pixels: Vec<f32> = rows.flat_map(|bits| (0..8).map(move |at| f32::from(bits >> at & 1))).collect();
    Tensor::from_slice(&pixels).view([1, 1, 8, letters.len() as i64 * 8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caption_has_as_many_lines_as_it_needs() {
        assert_eq!(wrapped("found 90.6 % right", 16), ["found 90.6 %", "right"]);
        assert_eq!(wrapped("found 90.6 % right", 24), ["found 90.6 % right"]);
        assert_eq!(wrapped("restored", 3), ["res"]);
        assert!(wrapped("given", 0).is_empty());
    }
}
