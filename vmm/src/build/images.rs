//! The files to boot from, opened.

use std::path::{Path, PathBuf};

use umbra_boot::{Image, Kind, Role};

use crate::error::BuildError;
use crate::spec::{Module, Spec};

/// Kernel, initrd, modules and the command line that goes with them.
pub struct Images {
    pub kernel: Image,
    pub initrd: Option<Image>,
    pub modules: Vec<umbra_boot::Module>,
    pub command_line: String,
}

/// Opens what the specification names.
pub fn open(spec: &Spec) -> Result<Images, BuildError> {
    let mut kernel = Image::open(Role::Kernel, &spec.kernel)?;
    let multiboot = kernel.kind()? == Kind::Multiboot;
    let (mut initrd, mut modules) = (None, Vec::new());
    match &spec.initrd {
        Some(list) if multiboot => modules = several(list),
        Some(path) => initrd = Some(Image::open(Role::Initrd, path)?),
        None => {}
    }
    // Messages call a file what the user called it.
    let open = |role| {
        move |module: Module| {
            Ok(umbra_boot::Module {
                image: Image::open(role, &module.path)?,
                command_line: module.command_line,
            })
        }
    };
    let first = modules.into_iter().map(open(Role::Initrd));
    let more = spec.modules.iter().cloned().map(open(Role::Module));
    let default = if multiboot { "" } else { Spec::COMMAND_LINE };
    Ok(Images {
        kernel,
        initrd,
        modules: first.chain(more).collect::<Result<_, BuildError>>()?,
        command_line: spec.command_line.clone().unwrap_or_else(|| default.into()),
    })
}

/// Reads the initrd of a multiboot kernel as QEMU does: modules with commas between them, each a
/// path and, after a space, its string. Two commas stand for one. A file whose name has all that
/// in it is one module.
fn several(list: &Path) -> Vec<Module> {
    let text = list.to_string_lossy();
    if list.exists() {
        return vec![Module::parse(&text, Some(list.to_owned()))];
    }
    let joined = text.replace(",,", "\0");
    let pieces = joined.split(',').filter(|piece| !piece.is_empty());
    pieces
        .map(|piece| Module::parse(&piece.replace('\0', ","), None))
        .collect()
}

impl Module {
    /// Reads a module: a path and, after the first space, what the kernel shall be told. The
    /// kernel gets the whole text, as it does from QEMU.
    pub fn parse(text: &str, path: Option<PathBuf>) -> Self {
        let file = text.split(' ').next().unwrap_or_default();
        Self {
            path: path.unwrap_or_else(|| file.into()),
            command_line: text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initrd_of_a_multiboot_kernel_is_a_list() {
        let modules = several(Path::new("/none/a x y,/none/b,,c,/none/d z"));
        let expected = [
            ("/none/a", "/none/a x y"),
            ("/none/b,c", "/none/b,c"),
            ("/none/d", "/none/d z"),
        ];
        let found: Vec<_> = modules
            .iter()
            .map(|m| (m.path.to_str().unwrap(), &m.command_line[..]))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_file_with_a_comma_in_its_name_is_one_module() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b,c");
        std::fs::write(&path, "x").unwrap();
        let modules = several(&path);
        assert_eq!(modules.len(), 1);
        assert_eq!(modules[0].path, path);
    }
}
