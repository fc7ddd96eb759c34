//! Lets all ranks hear at once whether each of them has done its part.

use std::fmt::Display;

use super::{Collective, CollectiveError};

/// The first byte of what a rank brings.
const DONE: u8 = 0;
const FAILED: u8 = 1;

/// Gives every rank what all ranks bring, by rank. If a rank brings an error, all ranks get one: it gets its own, and the
/// others get [`CollectiveError::Replica`] with its number and message. So all of them stop, or all of them go on.
///
/// # Errors
///
/// The first rank's error, and [`CollectiveError`].
pub fn share<E>(collective: &dyn Collective, own: Result<Vec<u8>, E>) -> Result<Vec<Vec<u8>>, E>
where
    E: Display + From<CollectiveError>,
{
    let all = exchange(collective, own.as_deref().map_err(E::to_string));
    own?;
    Ok(all?)
}

/// [`share`] for ranks that tell nothing but whether they failed; each gets its own result.
///
/// # Errors
///
/// Those of [`share`].
pub fn together<T, E>(collective: &dyn Collective, own: Result<T, E>) -> Result<T, E>
where
    E: Display + From<CollectiveError>,
{
    let all = exchange(collective, own.as_ref().map(|_| &[][..]).map_err(E::to_string));
    let own = own?;
    all?;
    Ok(own)
}

/// What all ranks bring, or the message of the first that failed.
fn exchange(collective: &dyn Collective, own: Result<&[u8], String>) -> Result<Vec<Vec<u8>>, CollectiveError> {
    let mine = match &own {
        Ok(bytes) => [&[DONE], *bytes].concat(),
        Err(message) => [&[FAILED], message.as_bytes()].concat(),
    };
    let read = |(rank, bytes): (usize, Vec<u8>)| match bytes.split_first() {
        Some((&DONE, rest)) => Ok(rest.to_vec()),
        Some((&FAILED, text)) => {
            let message = String::from_utf8_lossy(text).into_owned();
            Err(CollectiveError::Replica { rank, message })
        }
        _ => {
            let (found, expected) = (format!("{} bytes", bytes.len()), "whether it has done its part".into());
            Err(CollectiveError::Mismatch { rank, found, expected })
        }
    };
    collective.gather_bytes(&mine)?.into_iter().enumerate().map(read).collect()
}
