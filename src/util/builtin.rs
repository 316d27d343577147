//! The shipped models and configs, embedded so that an installed binary works outside the checkout.

use include_dir::{Dir, include_dir};

static MODELS: Dir = include_dir!("$CARGO_MANIFEST_DIR/models");
static CONFIGS: Dir = include_dir!("$CARGO_MANIFEST_DIR/configs");

/// The text of a shipped architecture, by its name without `.yaml`.
pub fn model(name: &str) -> Option<&'static str> {
    text(&MODELS, name)
}

/// The text of a shipped run config, by its name without `.yaml`, such as `quickstart`.
pub fn config(name: &str) -> Option<&'static str> {
    text(&CONFIGS, name)
}

/// The names of the shipped architectures, sorted.
pub fn models() -> impl Iterator<Item = &'static str> {
    names(&MODELS)
}

/// The names of the shipped configs, sorted; those in a folder carry it, as in `articles/lines`.
pub fn configs() -> impl Iterator<Item = &'static str> {
    names(&CONFIGS)
}

fn text(dir: &'static Dir, name: &str) -> Option<&'static str> {
    dir.get_file(format!("{name}.yaml"))?.contents_utf8()
}

fn names(dir: &'static Dir) -> impl Iterator<Item = &'static str> {
    let mut names = Vec::new();
    let mut folders = vec![dir];
    while let Some(folder) = folders.pop() {
        folders.extend(folder.dirs());
        let files = folder.files().filter_map(|file| file.path().to_str());
        names.extend(files.filter_map(|path| path.strip_suffix(".yaml")));
    }
    names.sort_unstable();
    names.into_iter()
}
