//! Inputs to begin with.

use std::path::Path;

/// Names the folder into which a target writes inputs to begin with.
const FOLDER: &str = "UMBRA_FUZZ_SEEDS";

/// Writes inputs by name, if somebody wants them.
pub fn write_seeds(seeds: impl IntoIterator<Item = (String, Vec<u8>)>) {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    for (name, input) in seeds {
        let path = Path::new(&folder).join(name);
        std::fs::write(path, input).expect("the folder for seeds is writable");
    }
}
