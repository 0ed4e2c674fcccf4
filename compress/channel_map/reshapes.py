"""Which dimensions a reshape cuts."""


def splits(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[int, int]]:
    """Dimensions that a reshape divides into several.

    Args:
        before: Shape; the number of elements is that of `after`.
        after: Likewise.

    Returns:
        (dimension of `before`, rows that it is divided into first). Dimensions that are only merged, or that stay, are
        not among them.
    """
    found, left, right = [], 0, 0
    while left < len(before) and right < len(after):
        starts, sizes = (left, right), [before[left], after[right]]
        left, right = left + 1, right + 1
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                sizes[0] *= before[left]
                left += 1
            else:
                sizes[1] *= after[right]
                right += 1
        rows = [length for length in after[starts[1] : right] if length > 1]
        whole = [axis for axis in range(starts[0], left) if before[axis] > 1]
        if len(rows) > 1 and len(whole) == 1:
            found.append((whole[0], rows[0]))
        elif len(rows) > 1 and len(whole) > 1 and tuple(before[axis] for axis in whole) != tuple(rows):
            found += [(axis, 0) for axis in whole]
    return found
