package drill

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Scenarios are all, in the order of a drill.
func Scenarios() []Scenario {
	return []Scenario{
		{"kill", "H1, H3, H18, H34", "the server is killed (SIGKILL) while four clients write; every second time the index is deleted as well",
			"what was acknowledged is there, byte for byte; what was not is there whole or not at all", kill},
		{"upload-cut", "H68", "connections of uploads end half-way", "nothing of such an upload is seen, and what it was to replace stands", uploadCut},
		{"lost-nodes", "H1, H2, H5, H39", "one, then as many node directories are deleted as the store survives, while it serves",
			"it says so, goes on reading and writing, also after a restart; replaced nodes are filled again", lostNodes},
		{"repair-killed", "H33", "the server is killed while it repairs lost nodes; then other nodes are lost",
			"the repair goes on after the start, and what it has called whole is whole", repairKilled},
		{"rot", "H30, H36", "bits flip in the segments of as many nodes as the store survives, data and journal, while it serves",
			"no wrong byte is read; a light scrub finds and repairs the damage, the next finds none", rotLight},
		{"rot-deep", "H30, H36", "the same, found by a deep scrub", "no wrong byte is read; the scrub finds and repairs the damage, the next finds none", rotDeep},
		{"torn", "H36", "segments of nodes are cut in half or overwritten with zeros while nothing serves them",
			"the next start serves everything; a scrub makes the shards anew", torn},
		{"small-files", "H39, H49, H56", "bits flip in the small files of nodes: identity, state, cluster file, keyring",
			"as many damaged nodes as may be lost are survived, and replaced where they are refused", smallFiles},
		{"other-bytes", "H30, H46", "shards are replaced by other bytes with right checksums", "no wrong byte is read; a scrub finds the shards by their logged digests and makes them anew", otherBytes},
		{"old-node", "H48", "node directories of earlier are put in the place of today's", "what was written since is read from the others, and a scrub fills the old ones up", oldNode},
		{"swapped", "H39", "two node directories are swapped", "neither is taken for the other; put right again, nothing is missing", swapped},
		{"index-lost", "H13, H49", "the index is deleted", "it is made anew, the same row by row, by cairn rebuild and by a start", indexLost},
		{"index-old", "H13", "the index is replaced by one of earlier", "a start brings it up to the log: the same listing, every object", indexOld},
		{"index-rot", "H11, H12, H13", "bits flip in the files of the index", "the check of the start proves the index, a start makes it anew, or refuses it and says so: nothing is called absent that is there", indexRot},
		{"rolled-back", "H14", "all node directories are of earlier, the index is of today", "the start stops and keeps the index, which may be the only record; with today's nodes everything is there", rolledBack},
		{"keyring", "H56", "copies of the keyring rot on the nodes, in the end all of them", "as long as one copy is right the store starts; then an exported copy stands in", keyring},
		{"wrong-key", "H55", "the key file is missing, damaged, or of another store", "each is refused and nothing is changed; with the right one everything is read", wrongKey},
		{"lost-key", "H55", "the key file is lost for good; the recovery code is there", "the code opens the store and makes a new key file, with which everything is read", lostKey},
		{"not-mounted", "H39, H55", "the data directory is empty, as when its disk is not mounted", "no new store begins in it; once it is back everything is read", notMounted},
		{"twice", "H42", "a second server and commands are started on a directory that is served", "they are refused, and the first goes on", twice},
		{"plaintext", "H60", "a name and a text are planted, and looked for in every file of the store", "neither is found", plaintext},
		{"gc", "H20 to H24", "objects are deleted and collected at once (gc --now --purge), and the nodes told to give their space back", "the space returns, and nothing else goes", collect},
		{"beyond-nodes", "H5, H52", "one node directory more is lost than the store survives, while it serves",
			"no wrong byte; exactly the objects without enough shards are answered with an error, all others are read as long as enough nodes are left to ask; writes and starts are refused; with one directory back everything is", beyondNodes},
		{"beyond-rot", "H25, H30", "more shards of some packs are destroyed than the store survives",
			"the lost objects are named exactly, all others are read, the store serves; stored again they are whole", beyondRot},
	}
}

// NotTried is what a drill leaves out.
func NotTried() []Untried {
	return []Untried{
		{"H9, H52", "full disks", "needs root, to mount small filesystems: integration TestFullFilesystem"},
		{"H13, H34, H38", "power cuts", "needs root and filesystems of its own that are shut down: integration TestPowerCut"},
		{"H35, H40, H41", "failed and lying syncs, hung disks, read errors", "needs root, or a tracer: integration TestFailedSyncs, TestHungDisk, TestReadErrors"},
		{"H2 to H8, H10, H15 to H19, H27 to H29, H31, H32, H43, H45, H71", "orders of events inside the engine", "cannot be brought about from outside: the simulation, store/sim"},
		{"H26, H51, H53, H54, H67", "memory, overload, clients that crawl", "takes longer than a drill: integration TestMemoryIsBounded, TestOverload, TestSlowClientsShutNobodyOut"},
		{"H57 to H59", "nonces, labels, lengths", "is no accident that can happen to files: seal, pack"},
		{"H64 to H66, H69, H70", "hostile requests and pages", "harm no stored byte: api/rest, integration TestHostilePage"},
		{"H44, H47, H50", "nodes and links of other machines", "there are none yet, or it takes several disks"},
	}
}

// lose removes what node directories hold, as a dead disk does; under a running
// process names may come while others go.
func lose(dirs ...string) error {
	for _, dir := range dirs {
		for range 100 {
			entries, err := os.ReadDir(dir)
			if err != nil {
				return err
			}
			if len(entries) == 0 {
				break
			}
			for _, e := range entries {
				_ = os.RemoveAll(filepath.Join(dir, e.Name())) // looked at again
			}
		}
	}
	return nil
}

// moveAll moves what a directory holds into another, which need not be there and
// loses what it holds.
func moveAll(from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) dirs(names []string) (out []string) {
	for _, n := range names {
		out = append(out, r.node(n))
	}
	return out
}

func (r *rig) replace(ctx context.Context, names ...string) error {
	_, err := r.must(ctx, append([]string{"nodes", "replace"}, names...)...)
	if err == nil {
		r.say("repaired", "%s replaced by cairn nodes replace", strings.Join(names, ", "))
	}
	return err
}

// sound ends most scenarios: everything is asked for and read, then the server is
// stopped and every shard read by cairn verify.
func (r *rig) sound(ctx context.Context) error {
	if err := r.check(ctx); err != nil {
		return err
	}
	if err := r.stop(); err != nil {
		return err
	}
	return r.verify(ctx)
}

// repaired wants a scrub that ends so, another that finds nothing, and a sound
// store. It gives what the first has found.
func (r *rig) repaired(ctx context.Context, deep bool, want int) (scrubbed, error) {
	s, err := r.scrub(ctx, deep, want)
	if err != nil {
		return s, err
	}
	if _, err := r.scrub(ctx, true, scrubClean); err != nil {
		return s, err
	}
	return s, r.sound(ctx)
}

// grow writes on a store that was copied before, so that it and the copy differ.
func (r *rig) grow(ctx context.Context, what string) error {
	if err := r.start(ctx); err != nil {
		return err
	}
	for i := range 3 {
		if err := r.put(ctx, r.own("wide"), fmt.Sprintf("%s/small %d", what, i), 500+i); err != nil {
			return err
		}
		if err := r.put(ctx, r.own("wide"), fmt.Sprintf("%s/large %d", what, i), 400_000+i); err != nil {
			return err
		}
	}
	return r.stop()
}

// putBack takes a part of the store away and puts the one of the origin there.
func (r *rig) putBack(part ...string) error {
	rel := filepath.Join(part...)
	dst := filepath.Join(r.data, rel)
	if err := os.RemoveAll(dst); err != nil {
		return err
	}
	return copyTree(filepath.Join(r.origin, rel), dst, len(part))
}
