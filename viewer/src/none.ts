// Stands in for NiiVue's Zarr decoders, which this page never uses: they would double its size.
export default undefined;
