"""Read sections into :class:`spatialdata.SpatialData`.

=====================================  ===========================================================================
what you have                          how to read it
=====================================  ===========================================================================
h5ad with ``obsm["spatial"]`` + image  :func:`from_anndata`
legacy Spatial Transcriptomics files   :func:`spatial_transcriptomics`
the her2st download                    :func:`her2st`
an H&E slide without spots (svs, ...)  :func:`slide`
Space Ranger output folder (Visium)    ``spatialdata_io.visium(path, fullres_image_file=...)``
Space Ranger output folder (HD)        ``spatialdata_io.visium_hd(path, dataset_id=...)``, then ``nh.pp.pseudospots``
Xenium output folder                   ``spatialdata_io.xenium(path)``, then ``nh.pp.pseudospots``
outlines of cells (GeoJSON, ...)       :func:`cells`
samples of HEST-1k                     :func:`hest`
slides of STimage-1K4M                 :func:`stimage`
=====================================  ===========================================================================

Space Ranger folders
--------------------
There is no reader for Space Ranger folders here: ``spatialdata_io.visium()`` reads them, and every function of this
package takes the object as it comes. Give it the full-resolution image when there is one; ``tissue_hires_image.png``
has about 4 µm per pixel, which is coarse for patches of the size of a spot (``allow="coarse"`` goes on with it)::

    import spatialdata_io

    sdata = spatialdata_io.visium("outs/", dataset_id="S1", fullres_image_file="S1.tif")

Several sections
----------------
A section that is predicted by models of other sections keeps all of its tissue for their training. Join them in one
object, and each is held out as a whole. Names of sections must differ::

    import spatialdata

    sdata = spatialdata.concatenate([first, second], concatenate_tables=True)
    nh.tl.predict_expression(sdata)

Where two sections have spots of one name, anndata warns of it, and spatialdata then makes the names unique. Genes that
one section lacks are left out. ``groups=`` says which sections are from one patient: those are held out together. Each
section is predicted by other models, so clusters of predicted genes over all of them may follow the sections and not
the tissue: cluster one section at a time, or correct for the section as for a batch.

What the readers here make
--------------------------
For a section ``S``: a lazy multiscale image ``S_image`` (c, y, x; uint8; r, g, b), circles of the true radius
``S_spots``, the counts in ``tables["table"]`` and two coordinate systems, ``S`` (pixels of the image) and
``S_microns`` (µm).
"""

from __future__ import annotations

from nh2st_scverse.io._anndata import from_anndata
from nh2st_scverse.io._cells import cells
from nh2st_scverse.io._hest import hest
from nh2st_scverse.io._legacy import her2st, spatial_transcriptomics
from nh2st_scverse.io._slide import slide
from nh2st_scverse.io._stimage import stimage

__all__ = ["cells", "from_anndata", "her2st", "hest", "slide", "spatial_transcriptomics", "stimage"]


def __dir__() -> list[str]:
    return sorted(__all__)
