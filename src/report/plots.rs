//! The figures of one run as PNG files in its folder.

use std::fs;
use std::io::ErrorKind;

use anyhow::Result;

use super::{Group, classes, curves, layers, predicted};
use crate::plot::png::png;
use crate::plot::standalone;
use crate::report::history::History;
use crate::util::atomic_file;
use crate::util::exit_code::{ExitCode, WithExitCode};

/// Draws what `run` has recorded so far into the folder `plots` of its own: `loss.png` and so on.
pub fn plots(run: &History) -> Result<()> {
    let group = Group { runs: vec![run], ordered: false };
    let mut figures = curves::figures(&group);
    for (name, what) in [("layer-norms", "norm"), ("layer-zeros", "zeros")] {
        figures.extend(layers::lines(run, what, "").map(|lines| (name.to_owned(), lines)));
    }
    for (output, lines) in predicted::figures(run).into_iter().enumerate() {
        let name = if output == 0 { "predicted".to_owned() } else { format!("predicted-{output}") };
        figures.push((name, lines));
    }
    let drawn = figures.iter().filter_map(|(name, lines)| Some((name.as_str(), lines.draw()?.svg)));
    let all = drawn.chain(classes::matrix(run).map(|svg| ("confusion", svg)));
    let plots = run.path.join("plots");
    // Not with its parents: a run folder that was removed meanwhile is not made anew.
    let made = fs::create_dir(&plots).or_else(|error| match error.kind() {
        ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error),
    });
    made.with_exit_code(ExitCode::Storage, || plots.display())?;
    for (name, svg) in all {
        let picture = png(&standalone(&svg))?;
        // A metric may be called after a class, whose name is any text.
        let name: String =
            name.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).take(60).collect();
        atomic_file::write_bytes(&plots.join(format!("{name}.png")), &picture)?;
    }
    Ok(())
}
