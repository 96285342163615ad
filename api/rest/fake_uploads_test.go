package rest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"cairn/store"
)

// fakeUpload is an upload of the fake store.
type fakeUpload struct {
	store.Upload
	data []byte
}

func (f *fakeStore) upload(id string) (*fakeUpload, error) {
	if u := f.uploads[id]; u != nil {
		return u, nil
	}
	return nil, fmt.Errorf("upload %q: %w", id, store.ErrNoUpload)
}

func (f *fakeStore) BeginUpload(_ context.Context, bucket, key string, o store.UploadOptions) (store.Upload, error) {
	defer f.mu.Unlock()
	if err := f.enter("beginUpload", bucket, key); err != nil {
		return store.Upload{}, err
	}
	if _, err := f.find(bucket); err != nil {
		return store.Upload{}, err
	}
	if err := fakeKey(key); err != nil {
		return store.Upload{}, err
	}
	f.seq++
	u := &fakeUpload{Upload: store.Upload{ID: fmt.Sprintf("%032x", f.seq), Bucket: bucket, Key: key, Attrs: o.Attrs, Size: o.Size, Note: o.Note}}
	if f.uploads == nil {
		f.uploads = map[string]*fakeUpload{}
	}
	f.uploads[u.ID] = u
	return u.Upload, nil
}

func (f *fakeStore) Upload(_ context.Context, id string) (store.Upload, error) {
	defer f.mu.Unlock()
	if err := f.enter("upload", id, ""); err != nil {
		return store.Upload{}, err
	}
	u, err := f.upload(id)
	if err != nil {
		return store.Upload{}, err
	}
	return u.Upload, nil
}

func (f *fakeStore) AppendUpload(_ context.Context, id string, offset uint64, r io.Reader) (uint64, error) {
	b, rerr := io.ReadAll(r)
	defer f.mu.Unlock()
	if err := f.enter("appendUpload", id, ""); err != nil {
		return 0, err
	}
	u, err := f.upload(id)
	if err != nil {
		return 0, err
	}
	if offset != u.Offset {
		return u.Offset, store.ErrOffset
	}
	u.data = append(u.data, b...)
	u.Offset = uint64(len(u.data))
	return u.Offset, rerr
}

func (f *fakeStore) SetUploadSize(_ context.Context, id string, size int64) (store.Upload, error) {
	defer f.mu.Unlock()
	if err := f.enter("setUploadSize", id, ""); err != nil {
		return store.Upload{}, err
	}
	u, err := f.upload(id)
	if err != nil {
		return store.Upload{}, err
	}
	u.Size = size
	return u.Upload, nil
}

func (f *fakeStore) CompleteUpload(ctx context.Context, id string, c store.Conditions) (store.Object, error) {
	f.mu.Lock()
	u, err := f.upload(id)
	f.mu.Unlock()
	if err != nil {
		return store.Object{}, err
	}
	o, err := f.Put(ctx, u.Bucket, u.Key, bytes.NewReader(u.data), store.PutOptions{Size: int64(len(u.data)), Attrs: u.Attrs, If: c})
	if err == nil {
		f.mu.Lock()
		u.Done = o.Version
		f.mu.Unlock()
	}
	return o, err
}

func (f *fakeStore) AbortUpload(_ context.Context, id string) error {
	defer f.mu.Unlock()
	if err := f.enter("abortUpload", id, ""); err != nil {
		return err
	}
	if _, err := f.upload(id); err != nil {
		return err
	}
	delete(f.uploads, id)
	return nil
}

func (f *fakeStore) Uploads(_ context.Context, after string, limit int) (out []store.Upload, more bool, err error) {
	defer f.mu.Unlock()
	if err := f.enter("uploads", after, ""); err != nil {
		return nil, false, err
	}
	if limit <= 0 || limit > 100 {
		limit = 100
	}
	for _, id := range slices.Sorted(maps.Keys(f.uploads)) {
		if u := f.uploads[id]; id > after && u.Done.IsZero() {
			if len(out) == limit {
				return out, true, nil
			}
			out = append(out, u.Upload)
		}
	}
	return out, false, nil
}
