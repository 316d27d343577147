//! Weights from any file or folder that Python users have.

use std::path::Path;

use anyhow::Result;

use super::{dcp, sharded, single_file};
use crate::nn::model::Patterns;
use crate::pytorch::reader::PythonFile;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};

pub use super::named_weights::{Part, Unreadable, Weights};
pub use super::single_file::{dtype, kind, tensors};

/// Reads the weights of a zip, legacy, TorchScript, .pt2 or safetensors file, of a sharded Hugging Face model
/// or of a DCP folder, recognised by content. `key` forces a dotted path. Errors exit with 4 and name the file and
/// the entry.
pub fn read_weights(path: &Path, key: Option<&str>) -> Result<Weights> {
    read_part(path, &Part { keys: key.map(str::to_owned).into_iter().collect(), ..Part::default() })
}

/// The same for `part` of the file. Ignored tensors are read too where that is possible: see
/// [`Weights::kept`].
pub fn read_part(path: &Path, part: &Part) -> Result<Weights> {
    let (mut weights, unreadable) = read_weights_lenient(path, part)?;
    let ignored = Patterns::new(&part.ignore);
    let (passed_over, unreadable): (Vec<_>, Vec<_>) =
        unreadable.into_iter().partition(|tensor| ignored.matches(&tensor.name));
    weights.passed_over = passed_over.into_iter().map(|tensor| tensor.name).collect();
    match unreadable.first() {
        None => Ok(weights),
        Some(first) => {
            let message = format!(
                "`{}` {}; `ignore` passes over tensors that are not needed",
                first.name, first.reason
            );
            Err(fail(ExitCode::Checkpoint, message)).with_exit_code(ExitCode::Checkpoint, || path.display())
        }
    }
}

/// The same, for a look into the file: tensors of kinds that cannot be loaded are listed apart instead of
/// being an error.
pub fn read_weights_lenient(path: &Path, part: &Part) -> Result<(Weights, Vec<Unreadable>)> {
    read_any(path, part).with_exit_code(ExitCode::Checkpoint, || path.display())
}

/// Opens a `torch.save` file for its other parts, such as an optimiser's state: see [`PythonFile::lookup`]
/// and [`tensors`].
pub fn open_python(path: &Path) -> Result<PythonFile> {
    crate::pytorch::reader::read(path).with_exit_code(ExitCode::Checkpoint, || path.display())
}

fn read_any(path: &Path, part: &Part) -> Result<(Weights, Vec<Unreadable>)> {
    if let Some(folder) = dcp::folder(path) {
        return dcp::read(folder, part);
    }
    if let Some(index) = sharded::index(path) {
        return sharded::read(&index, part);
    }
    let file = sharded::single(path);
    single_file::read(file.as_deref().unwrap_or(path), part)
}
