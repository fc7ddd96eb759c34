//! Checks that a command does not replace files that it reads.

use std::path::{Path, PathBuf};

use super::CheckpointError;

/// Checks that replacing `target` removes nothing that is read. None of `sources`, which are files, directories or
/// patterns of files, may lie in it, including the targets of links and of links inside a directory; and `target` must
/// not lie in a source that is a checkpoint.
///
/// # Errors
///
/// Returns [`CheckpointError::Mismatch`], which names the source.
pub fn spare(sources: &[PathBuf], target: &Path) -> Result<(), CheckpointError> {
    let Ok(place) = target.canonicalize() else { return Ok(()) };
    for source in sources {
        if places(source).iter().any(|read| read.starts_with(&place)) {
            return Err(CheckpointError::Mismatch(format!(
                "{} lies in {}, which --overwrite would replace: choose another output directory",
                source.display(),
                target.display()
            )));
        }
        let checkpoint = ["config.json", "adapter_config.json"].iter().any(|name| source.join(name).is_file());
        if checkpoint && source.canonicalize().is_ok_and(|source| place.starts_with(source)) {
            return Err(CheckpointError::Mismatch(format!(
                "{} lies in {}, which is being read, and --overwrite would replace it: choose another output directory",
                target.display(),
                source.display()
            )));
        }
    }
    Ok(())
}

/// The locations of a source with all links resolved: its own, and for a directory also the targets of the links in it.
/// For something that does not exist, such as a pattern, it is the nearest existing folder.
fn places(source: &Path) -> Vec<PathBuf> {
    let whole = if source.is_absolute() { source.into() } else { Path::new(".").join(source) };
    let nearest = whole.ancestors().find_map(|path| path.canonicalize().ok());
    let inside = std::fs::read_dir(&whole).into_iter().flatten().flatten();
    let links = inside.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    nearest.into_iter().chain(links.filter_map(|link| link.path().canonicalize().ok())).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_lies_in_the_target_is_found_through_dots_patterns_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let (out, other) = (dir.path().join("out"), dir.path().join("other"));
        fs::create_dir_all(out.join("sub")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(out.join("sub/a.json"), "[]").unwrap();
        let refused = |source: PathBuf| spare(std::slice::from_ref(&source), &out).is_err();
        for inside in [out.clone(), out.join("sub/a.json"), other.join("../out/sub"), out.join("sub/*.json")] {
            assert!(refused(inside.clone()), "{inside:?}");
        }
        for outside in [other.clone(), other.join("gone"), dir.path().join("*.json"), dir.path().to_path_buf()] {
            assert!(!refused(outside.clone()), "{outside:?}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(out.join("sub/a.json"), other.join("a.json")).unwrap();
            assert!(refused(other.clone()) && refused(other.join("a.json")));
        }
    }

    #[test]
    fn a_target_below_the_checkpoint_that_is_read_is_refused_and_one_below_a_folder_of_data_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        let source = [dir.path().to_path_buf()];
        spare(&source, &out).unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert!(spare(&source, &out).unwrap_err().to_string().contains("is being read"));
    }
}
