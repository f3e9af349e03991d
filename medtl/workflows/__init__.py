"""The jobs behind the commands: one file each; each composes the layers below and returns what is printed."""
