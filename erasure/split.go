package erasure

import "fmt"

// The library's Split is not used: it writes into spare capacity of its input.

// ShardLen is the length of the shortest k equal shards that hold n bytes, at
// least 1.
func ShardLen(n, k int) int { return max((n+k-1)/k, 1) }

// Split copies payload over the data shards, which the caller lends and which
// have one length, and fills what is left with zeros. Zeros that were not
// written but happened to be there are none: the parity covers the filling, and
// whoever lays out the same payload again must get the same shards.
func Split(data [][]byte, payload []byte) error {
	if err := equal(data, len(payload)); err != nil {
		return err
	}
	for _, d := range data {
		n := copy(d, payload)
		clear(d[n:])
		payload = payload[n:]
	}
	return nil
}

// View is Split without a copy: stream begins with n bytes of payload; the rest
// of it is filled with zeros and data[i] becomes its i-th of len(data) equal
// ranges, with no capacity beyond.
func View(data [][]byte, stream []byte, n int) error {
	if len(data) == 0 || len(stream) == 0 || len(stream)%len(data) != 0 || n < 0 || n > len(stream) {
		return fmt.Errorf("%w: %d bytes of payload in a stream of %d for %d shards", ErrShape, n, len(stream), len(data))
	}
	clear(stream[n:])
	size := len(stream) / len(data)
	for i := range data {
		data[i] = stream[i*size : (i+1)*size : (i+1)*size]
	}
	return nil
}

// Join appends the first n bytes that the data shards hold to dst.
func Join(dst []byte, data [][]byte, n int) ([]byte, error) {
	if err := equal(data, n); err != nil {
		return dst, err
	}
	for _, d := range data {
		d = d[:min(n, len(d))]
		dst = append(dst, d...)
		n -= len(d)
	}
	return dst, nil
}

// equal checks that the data shards have one length above zero and hold n bytes.
func equal(data [][]byte, n int) error {
	if len(data) == 0 || n < 0 {
		return fmt.Errorf("%w: %d bytes in %d shards", ErrShape, n, len(data))
	}
	for i, d := range data {
		if len(d) == 0 || len(d) != len(data[0]) {
			return fmt.Errorf("%w: shard %d has %d bytes and shard 0 %d, want one length above zero", ErrShape, i, len(d), len(data[0]))
		}
	}
	if n > len(data)*len(data[0]) {
		return fmt.Errorf("%w: %d bytes for %d shards of %d", ErrShape, n, len(data), len(data[0]))
	}
	return nil
}
