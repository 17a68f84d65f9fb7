// Stands in for decoders of Zarr stores, which NiiVue could load and this page never does: they would double its size.
export default undefined;
