"""The benchmark of stfs: `scripts/bench`. Each section measures one thing and can be run alone.

* looking: the first stat of a converted checkpoint on a fresh mount, against Hugging Face's convert.py
* many_tensors: listing and first stat of checkpoints of 1,000, 10,000 and 100,000 tensors
* loading: safetensors' load_file through the mount, the first time, again and once promoted, against the native file
  on the same disk and torch.load of the checkpoint
* peers: a 4 GB bfloat16 model in two shards with every loader there is, mount against native file
* reading: reads of a shown file, buffered and O_DIRECT, with cat, dd and fio, against the native file
* cold: the whole file from the disk, against reading the checkpoint itself
* memory: the background process of the mount while models are loaded
* peaks: its memory while something asks for much (bombs, a long header, large indexes, very many tensors or
  checkpoints), and a minute later
* inflating: how long a stat of another file takes while eight readers wait for 600 MB that are compressed
* hanging: whether the mount's own figures, `stfs status` and statfs answer while the source does not
* idle: how often the threads of a mount at rest wake in a minute
* tree: mounting, listing and searching 10,000 small checkpoints, against the source itself
* distance: the first `ls -l` of a 1 GB checkpoint behind 30 ms, and what it reads, against the least there is to read
* verifying: `stfs cache verify` of 400 checkpoints in one directory, against reading both files
* diff: `stfs diff` of a checkpoint and its converted form, against cmp of two files of that size
* indexes: an index of 20,000 tensors, first and later, and the memory that four of 14 MiB take
* pressure (with --big): a model of half the memory is streamed, then another is loaded

Unless a row says otherwise, source files are in the page cache, every mount is new and starts with an empty cache
directory of its own, destinations of copies exist before the copy, and what is compared is measured in turns, round
by round. Numbers are medians, with the range around them; ratios are ratios of medians.

Sections import only what is not a section: stfs (the program), models, loaders, worker, reads, report.
"""
