package store

import (
	"sync"

	"cairn/index"
	"cairn/record"
)

// knownBuckets remembers buckets by name, without what they count: nearly every
// request names one, and few change any. What it says was true after the request
// began; a write has it checked once more when it is decided.
type knownBuckets struct {
	mu     sync.RWMutex
	age    uint64 // rises when any bucket has changed
	byName map[string]index.Bucket
}

// manyBuckets is how many are remembered; then it begins anew.
const manyBuckets = 1024

func (k *knownBuckets) get(name string) (b index.Bucket, age uint64, ok bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	b, ok = k.byName[name]
	return b, k.age, ok
}

// put remembers a bucket that was read after age was.
func (k *knownBuckets) put(b index.Bucket, age uint64) {
	b.BucketUsage = index.BucketUsage{}
	k.mu.Lock()
	defer k.mu.Unlock()
	if age != k.age {
		return // what was read may be older than the change
	}
	if k.byName == nil || len(k.byName) >= manyBuckets {
		k.byName = make(map[string]index.Bucket)
	}
	k.byName[b.Name] = b
}

// changed is called after a log pack was applied and before any answer is given.
func (k *knownBuckets) changed(rs []record.Record) {
	for _, r := range rs {
		switch r.(type) {
		case *record.BucketCreate, *record.BucketSet, *record.BucketDelete:
			k.mu.Lock()
			k.age++
			k.byName = nil
			k.mu.Unlock()
			return
		}
	}
}

// bucket looks a bucket up for a request.
func (s *Store) bucket(name string) (index.Bucket, error) {
	b, age, ok := s.buckets.get(name)
	if ok {
		return b, nil
	}
	err := s.view(func(r index.Reader) (err error) {
		b, err = bucketOf(r, name)
		return err
	})
	if err == nil {
		s.buckets.put(b, age)
	}
	return b, err
}
