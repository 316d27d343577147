//! What a regression predicts against what is true: `predictions.csv` in the run folder, which reports plot.

use anyhow::Result;
use tch::{Kind, Tensor, no_grad};

use crate::config::{PREDICTIONS_FILE, RunConfig};
use crate::data::Split;
use crate::libtorch::{catch_panics, device};
use crate::tasks::TaskSpec;
use crate::train::run_folder::RunFolder;
use crate::train::session::Session;

/// Rows of the file at most: the first ones of the set.
const ROWS: usize = 5000;

/// Whether runs of `spec` have such a file.
fn has_file(spec: &RunConfig) -> bool {
    matches!(spec.task, TaskSpec::Regression(_))
}

/// Writes the file with the weights that the run hands out, of the test set, else the validation set; nothing where
/// there is neither, or the task is no regression.
pub fn write(session: &Session, folder: &RunFolder) -> Result<()> {
    let splits = [Split::Test, Split::Validation];
    let Some(set) = splits.into_iter().find_map(|split| session.split(split)) else { return Ok(()) };
    if !has_file(&session.config.spec) {
        return Ok(());
    }
    let network = session.trained(&session.checkpoints().chosen(None)?)?;
    let loader = session.loader(set, false)?;
    let mut table = csv::Writer::from_writer(Vec::new());
    let mut rows = 0;
    device::seed(session.config.spec.seed);
    for batch in loader.epoch(0, 0) {
        let batch = batch?;
        let values = |tensor: &Tensor| -> Result<Vec<Vec<f64>>> {
            Ok(Vec::try_from(loader.in_data_units(tensor).flatten(1, -1).to_kind(Kind::Double))?)
        };
        let (truth, predicted) = catch_panics(|| {
            no_grad(|| -> Result<_> {
                let (xs, ys) = session.task.make_batch(batch.xs, batch.ys, false)?;
                Ok((values(&ys)?, values(&session.task.forward(&network, &xs, false)?.outputs)?))
            })
        })??;
        if rows == 0 {
            let columns = (0..truth.first().map_or(0, Vec::len))
                .flat_map(|at| [format!("y{at}"), format!("predicted{at}")]);
            table.write_record(columns)?;
        }
        for (truth, predicted) in truth.iter().zip(&predicted).take(ROWS - rows) {
            table.write_record(
                truth.iter().zip(predicted).flat_map(|(a, b)| [a.to_string(), b.to_string()]),
            )?;
            rows += 1;
        }
        if rows == ROWS {
            break;
        }
    }
    folder.write(PREDICTIONS_FILE, &String::from_utf8(table.into_inner()?)?)
}
