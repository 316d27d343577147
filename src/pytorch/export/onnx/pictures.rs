//! What a run did to pictures, in the graph: bytes in, resized and normalised; and answers in the units of the
//! data.

use anyhow::Result;
use tch::Kind;

use super::graph::{Graph, element};
use super::operators::{Float, Int, Ints, Text};
use super::proto::Element;
use crate::data::normalize::Normalize;
use crate::data::{Interpolation, Resize};
use crate::pytorch::export::torchscript::Preprocess;

/// Nodes between the input `x` and the network, which takes samples of the shape `input`; pictures come as
/// uint8, other samples as float32.
pub fn prepare(graph: &mut Graph, x: String, preprocess: &Preprocess, input: &[i64]) -> Result<String> {
    let kind = graph.kind;
    let to = |element: Element| [("to", Int(element as i64))];
    let mut x = x;
    if let [_, height, width] = *input {
        let largest = graph.floats(&[255.0], Kind::Float);
        x = graph.node("Cast", &[&x], &to(Element::Float));
        x = graph.node("Div", &[&x, &largest], &[]);
        if let Some(resize) = preprocess.resize {
            x = resized(graph, x, resize, height, width);
        }
    }
    if let Some(Normalize { mean, std }) = &preprocess.normalize {
        for (op, numbers) in [("Sub", mean), ("Div", std)] {
            let mut numbers = graph.floats(numbers, Kind::Float);
            if input.len() > 1 {
                let axes = graph.ints(&(1..input.len() as i64).collect::<Vec<_>>());
                numbers = graph.node("Unsqueeze", &[&numbers, &axes], &[]);
            }
            x = graph.node(op, &[&x, &numbers], &[]);
        }
    }
    Ok(match element(kind) {
        Some(element) if kind != Kind::Float => graph.node("Cast", &[&x], &to(element)),
        _ => x,
    })
}

/// As [`crate::data::Fit`] brings pictures to the size of the samples.
fn resized(graph: &mut Graph, x: String, resize: Resize, height: i64, width: i64) -> String {
    // What the scaled picture covers just so, and the filter.
    let wanted = [height, width];
    let (covered, interpolation) = match resize {
        Resize::Squash => (None, Interpolation::Bilinear),
        Resize::Crop => (Some(wanted), Interpolation::Bilinear),
        Resize::Shorter(transform) => (Some([transform.resize as i64; 2]), transform.interpolation),
    };
    let filter = match interpolation {
        Interpolation::Bilinear => vec![("mode", Text("linear"))],
        Interpolation::Bicubic => vec![("mode", Text("cubic")), ("cubic_coeff_a", Float(-0.5))],
    };
    // Without exclude_outside the weights of what is beyond the border would count.
    let border = vec![
        ("antialias", Int(1)),
        ("exclude_outside", Int(1)),
        ("coordinate_transformation_mode", Text("half_pixel")),
        ("axes", Ints(vec![2, 3])),
    ];
    let attributes = [filter, border].concat();
    let wanted = graph.ints(&wanted);
    let Some([rows, columns]) = covered else {
        return graph.node("Resize", &[&x, "", "", &wanted], &attributes);
    };
    // max(h * columns // w, rows) rows and max(w * rows // h, columns) columns: one is the side covered.
    let sides = graph.node("Shape", &[&x], &[("start", Int(2)), ("end", Int(4))]);
    let reversed = graph.ints(&[1, 0]);
    let turned = graph.node("Gather", &[&sides, &reversed], &[]);
    let (least, other) = (graph.ints(&[rows, columns]), graph.ints(&[columns, rows]));
    let scaled = graph.node("Mul", &[&sides, &other], &[]);
    let scaled = graph.node("Div", &[&scaled, &turned], &[]);
    let sizes = graph.node("Max", &[&scaled, &least], &[]);
    let mut x = graph.node("Resize", &[&x, "", "", &sizes], &attributes);
    if interpolation == Interpolation::Bicubic {
        // It overshoots, where Pillow's 8 bits end.
        let [low, high] = [0.0, 1.0].map(|bound| graph.number(bound, Kind::Float));
        x = graph.node("Clip", &[&x, &low, &high], &[]);
    }
    // The middle of it: the half of what is too much, rounded to even.
    let surplus = graph.node("Sub", &[&sizes, &wanted], &[]);
    let surplus = graph.node("Cast", &[&surplus], &[("to", Int(Element::Float as i64))]);
    let half = graph.floats(&[0.5], Kind::Float);
    let start = graph.node("Mul", &[&surplus, &half], &[]);
    let start = graph.node("Round", &[&start], &[]);
    let start = graph.node("Cast", &[&start], &[("to", Int(Element::Int64 as i64))]);
    let end = graph.node("Add", &[&start, &wanted], &[]);
    let axes = graph.ints(&[2, 3]);
    graph.node("Slice", &[&x, &start, &end, &axes], &[])
}

/// Nodes that bring answers `[N, T]` back to the units of the targets, in float64.
pub fn restore(graph: &mut Graph, y: String, target: &Normalize) -> String {
    let y = graph.node("Cast", &[&y], &[("to", Int(Element::Double as i64))]);
    let [std, mean] = [&target.std, &target.mean].map(|numbers| graph.floats(numbers, Kind::Double));
    let y = graph.node("Mul", &[&y, &std], &[]);
    let y = graph.node("Add", &[&y, &mean], &[]);
    let to = if graph.kind == Kind::Half { Element::Half } else { Element::Float };
    graph.node("Cast", &[&y], &[("to", Int(to as i64))])
}
