"""The network: the only room that imports libp2p. Start reading at `mesh_net`."""
