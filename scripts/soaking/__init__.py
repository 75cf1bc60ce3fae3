"""The soak test of stfs: `scripts/soak`. Mounts are used at random while everything around them changes.

Two mounts show one source. The *steady* one lives through the whole run; the *troubled* one is killed, ended and made
again all the time, with other options each time. Both share a cache directory. Workers, each a process of its own,
choose at random between

* loading and reading: load_file of torch and numpy, slices, mmap, pread, O_DIRECT, cat, readers that hold a file
* listing: find, ls -lR, a walk that looks at every file
* changing the source: replace by rename, overwrite in place, truncate, delete, new files, renamed directories
* promoting and evicting: `stfs warm`, `stfs cache`, a cache directory that is deleted
* trouble: SIGKILL, SIGTERM, SIGSTOP and SIGCONT of a mount's process, umount, umount -l, mounting again

Whatever was read is held against what may have been there between the beginning and the end: the bytes that
safetensors itself writes of the tensors that torch saved, for each version of the file that was current then. An error
is right where the file changed in that time or the mount was in trouble, and nowhere else; wrong bytes never are.
Everything must answer within some seconds, in which the mount's process was not stopped. From the first tenth of the
run to its end the steady mount's process must not grow, nor what is left in the cache directory after it is cleared.

A seed gives the same choices again; what is under way together is another matter.

* contents: versions of checkpoints, and what safetensors makes of each
* timeline: which versions may be seen when, and which errors
* reading, changing, commands: what a worker can do
* workers: the processes, what they are asked and when they have waited too long
* growth: what the steady mount's process holds
* run: the choice of what comes next, and the judgement of what comes back
"""
