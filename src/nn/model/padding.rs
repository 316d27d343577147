//! Images of any size in networks that downsample: padded to a multiple of the total stride, and cropped
//! afterwards.

use tch::Tensor;

use super::tree::{Node, Op};

/// Each is tried in turn.
const MULTIPLES: [i64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// Heights and widths that a network takes as it is, without padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sides {
    /// Both sides must be multiples of this.
    pub multiple: i64,
    /// The least height and width, multiples themselves.
    pub least: [i64; 2],
}

impl Sides {
    /// None for a network that takes no images, or those of one size only.
    pub(super) fn of(root: &Node) -> Option<Self> {
        if let Op::Script(script) = &root.op {
            return script.sides;
        }
        let &[channels, height, width] = root.input.as_slice() else { return None };
        let takes = |height: i64, width: i64| {
            let output = root.output_of(&[channels, height, width]);
            output.is_some_and(|output| output.len() == root.output.len())
        };
        let is_free = |multiple: i64| {
            let steps = (0..4).all(|step| takes(height + step * multiple, width + (3 - step) * multiple));
            steps && takes(2 * height, width) && takes(height, 2 * width + multiple)
        };
        let divides = |multiple: &i64| height % multiple == 0 && width % multiple == 0;
        let multiple = MULTIPLES.into_iter().filter(divides).find(|&multiple| is_free(multiple))?;
        let least = |side: i64, takes: &dyn Fn(i64) -> bool| {
            let steps = (1..).map(|step| side - step * multiple);
            steps.take_while(|&side| side > 0 && takes(side)).last().unwrap_or(side)
        };
        let least = [least(height, &|side| takes(side, width)), least(width, &|side| takes(height, side))];
        let least = if takes(least[0], least[1]) { least } else { [height, width] };
        Some(Self { multiple, least })
    }

    /// Another side than `side` that fits, for `axis` 0 (height) or 1: about the half, else the double.
    pub fn other(&self, axis: usize, side: i64) -> i64 {
        let half = side / 2 / self.multiple * self.multiple;
        if half >= self.least[axis] { half } else { 2 * side }
    }
}

/// Sides that a fully convolutional network takes, and how its output's sides follow from them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Padding {
    /// Sides must be multiples of this.
    multiple: i64,
    /// Output sides are input sides times the first, by the second.
    ratio: [i64; 2],
}

impl Padding {
    /// None for a network that does not map images to images, or works at one size only.
    pub fn of(root: &Node) -> Option<Self> {
        let (&[channels, height, width], &[outputs, out_height, out_width]) =
            (root.input.as_slice(), root.output.as_slice())
        else {
            return None;
        };
        if out_height * width != out_width * height {
            return None;
        }
        let expected = |side: i64| (side * out_height % height == 0).then_some(side * out_height / height);
        let takes = |multiple: i64| {
            // Several sizes, because one may fit by chance.
            let least = (height.min(width) / multiple).max(1);
            (least..least + 4).all(|times| {
                let sides = [times * multiple, (times + 3) * multiple];
                let wanted = sides.map(expected);
                let given = root.output_of(&[channels, sides[0], sides[1]]);
                given.is_some_and(|given| wanted == [Some(given[1]), Some(given[2])] && given[0] == outputs)
            })
        };
        // It takes the size that it was declared with as it is.
        let divides = |multiple: &i64| height % multiple == 0 && width % multiple == 0;
        let multiple = MULTIPLES.into_iter().filter(divides).find(|&multiple| takes(multiple))?;
        Some(Self { multiple, ratio: [out_height, height] })
    }

    /// Rows and columns to pad for images `[N, C, H, W]`.
    pub fn missing(&self, xs: &Tensor) -> Option<[i64; 2]> {
        let &[_, _, height, width] = xs.size().as_slice() else { return None };
        Some([height, width].map(|side| (-side).rem_euclid(self.multiple)))
    }

    /// The output of `network` for `xs` `[N, C, H, W]`, cropped.
    pub fn around(&self, xs: &Tensor, network: impl Fn(&Tensor) -> Tensor) -> Tensor {
        let (size, [times, by]) = (xs.size(), self.ratio);
        match self.missing(xs) {
            None | Some([0, 0]) => network(xs),
            Some([below, right]) => {
                let ys = network(&xs.replication_pad2d([0, right, 0, below]));
                ys.narrow(2, 0, size[2] * times / by).narrow(3, 0, size[3] * times / by)
            }
        }
    }
}
