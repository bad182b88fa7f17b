"""Turns a GGUF file into an artifact that a backend loads: header, plan, write.

Runs as a child process, confined, on files from strangers. Imports nothing of ours from outside this
package; `artifact` and `inspection` hold only Structs, which the daemon and the backends read.
"""
