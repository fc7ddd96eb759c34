//! Which samples share a row.

/// Puts lengths into rows of at most `limit` (a longer one gets a row of its own): the longest first, each into the
/// first row with room for it. Gives the rows' members by index, in the order in which they were put there.
pub fn pack(lengths: &[usize], limit: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(lengths[*index]));
    let mut rows: Vec<(usize, Vec<usize>)> = Vec::new();
    for index in order {
        let length = lengths[index];
        match rows.iter_mut().find(|(used, _)| used.saturating_add(length) <= limit) {
            Some((used, members)) => {
                *used += length;
                members.push(index);
            }
            None => rows.push((length, vec![index])),
        }
    }
    rows.into_iter().map(|(_, members)| members).collect()
}

#[cfg(test)]
mod tests {
    use super::pack;

    #[test]
    fn every_sample_is_in_one_row_and_no_row_is_longer_than_the_limit() {
        let lengths: Vec<usize> = (0..200).map(|i| (i * 37) % 61 + 1).collect();
        let rows = pack(&lengths, 100);
        let mut seen: Vec<usize> = rows.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..200).collect::<Vec<_>>());
        let total: usize = lengths.iter().sum();
        assert!(rows.iter().all(|row| row.iter().map(|i| lengths[*i]).sum::<usize>() <= 100));
        // First fit, longest first, wastes at most two ninths.
        assert!(rows.len() <= total.div_ceil(100) * 11 / 9 + 1, "{} rows for {total} tokens", rows.len());
    }

    #[test]
    fn what_fits_into_no_row_gets_one_of_its_own() {
        assert_eq!(pack(&[3, 9, 2], 5), vec![vec![1], vec![0, 2]]);
        assert!(pack(&[], 5).is_empty());
    }
}
